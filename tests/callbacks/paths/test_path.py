"""The line between any two states of a model, neither of which it need be in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_probes.callbacks.paths.path import Line, present
from lightning_probes.callbacks.paths.scores import Scorer
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView
from tests.callbacks.models import classification, loader

X, Y = classification()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trained(seed: int) -> dict[str, Tensor]:
    module = network(seed)
    sgd = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(10):
        sgd.zero_grad()
        cross_entropy(module(X), Y).backward()
        sgd.step()
    return module.state_dict()


def view_of(module: nn.Module) -> ModelView:
    objective = Objective(lambda module, batch: cross_entropy(module(batch[0]), batch[1]))
    return ModelView(Twin(module), objective, {"train": Drawing(len(X), len(X)).draw(loader(X, Y))})


def between(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float, re_estimate: bool) -> nn.Module:
    module = network(0)
    state = {
        name: torch.lerp(start[name], end[name], alpha) if end[name].is_floating_point() else end[name] for name in end
    }
    module.load_state_dict(state)
    if re_estimate:
        module[1].reset_running_stats()
        module[1].momentum = None
        module.train()(X)
    return module.eval()


@pytest.mark.parametrize("batch_norm", ["recalibrate", "eval"])
def test_points_between_two_other_runs_equal_networks_loaded_there(batch_norm: Any) -> None:
    start, end, model = trained(1), trained(2), network(3)
    view = view_of(model)
    before = copy.deepcopy(model.state_dict())
    line = Line(view, start, end, batch_norm)
    scores = Scorer(view, Speaker("line"), {})(view, (line.at(alpha) for alpha in (0.0, 0.3, 1.0)))["train"]
    for index, alpha in enumerate((0.0, 0.3, 1.0)):
        logits = between(start, end, alpha, batch_norm == "recalibrate")(X)
        assert scores.loss[index] == pytest.approx(float(cross_entropy(logits, Y)), rel=1e-5)
        assert scores.accuracy is not None
        assert scores.accuracy[index] == pytest.approx(float((logits.argmax(1) == Y).double().mean()))
    length = torch.cat([(end[name] - start[name]).flatten() for name, _ in model.named_parameters()]).norm()
    assert line.distance()[0] == pytest.approx(float(length), rel=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_in_neither_end_stays_where_the_model_has_it() -> None:
    end, model = trained(2), network(3)
    view = view_of(model)
    head = {name: tensor for name, tensor in end.items() if name.startswith("3.")}
    start = present(view, ["3"])
    assert {name for name in start if not name.startswith("1.running")} == head.keys()
    model.load_state_dict({**model.state_dict(), **head})
    moved = view_of(network(3)).mean_loss(Line(view, {n: start[n] for n in head}, head, "eval").at(1.0))
    assert float(moved) == pytest.approx(float(cross_entropy(model.eval()(X), Y)), rel=1e-6)


def test_ends_in_another_dtype_are_brought_to_that_of_the_model() -> None:
    start, end = trained(1), trained(2)
    view = view_of(network(3))
    wide = [{name: tensor.double() for name, tensor in state.items()} for state in (start, end)]
    for alpha in (0.0, 0.3, 1.0):
        point, expected = Line(view, *wide).at(alpha), Line(view, start, end).at(alpha)
        assert all(torch.equal(point[name], expected[name]) for name in expected)


def test_ends_of_other_shapes_are_refused() -> None:
    start, end = trained(1), trained(2)
    with pytest.raises(ValueError, match=r"'0.weight' has shape .* both ends of a line need the same architecture"):
        Line(view_of(network(3)), {**start, "0.weight": torch.zeros(2, 4)}, end).at(0.5)
