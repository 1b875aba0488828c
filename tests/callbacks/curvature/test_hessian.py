"""The Hessian of a probe set, from kept graphs and without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_probes.callbacks.curvature import hessian as tool
from lightning_probes.callbacks.curvature.hessian import Curvature
from lightning_probes.functional.curvature.hutchinson import random_signs
from lightning_probes.functional.parameter_vector import to_dict, to_vector
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.layers import by_layer
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.view import ModelView

ROOMS = {"all kept": 2**30, "some kept": 1500, "none kept": 0}


@pytest.fixture
def view() -> ModelView:
    """Three micro-batches, the last of them smaller."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = TensorDataset(torch.randn(10, 3).double(), torch.randn(10, 2).double())
    objective = Objective(lambda module, batch: (module(batch[0]) - batch[1]).square().mean(), None)
    return ModelView(Twin(module), objective, {"train": Drawing(10, 4, 0).draw(data)})


def explicit(view: ModelView) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and Hessian over all samples at once."""
    start = to_vector(view.params)

    def loss(vector: Tensor) -> Tensor:
        params = to_dict(vector, like=view.params)
        return sum(view.loss(params, batch) * batch.size / 10 for batch in view.batches())

    derivatives = torch.autograd.functional
    return loss(start), derivatives.jacobian(loss, start), derivatives.hessian(loss, start)


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_loss_gradient_and_hessian_equal_explicit_ones_however_many_graphs_are_kept(view: ModelView, room: int) -> None:
    loss, gradient, hessian = explicit(view)
    about = Curvature(view, room)
    sizes = torch.tensor(view.probe_set().sizes, dtype=torch.float64)
    torch.testing.assert_close((about.losses * sizes).sum() / 10, loss)
    torch.testing.assert_close(about.gradient, gradient)
    columns = [about.matvec(column) for column in torch.eye(len(gradient), dtype=torch.float64)]
    torch.testing.assert_close(torch.stack(columns), hessian)
    direction = nn.functional.normalize(torch.ones_like(gradient), dim=0)
    torch.testing.assert_close((about.along(direction) * sizes).sum() / 10, direction @ hessian @ direction)


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_block_equals_that_of_the_explicit_hessian_however_many_graphs_are_kept(view: ModelView, room: int) -> None:
    hessian, about, begin = explicit(view)[2], Curvature(view, room), 0
    for part in by_layer(view.params).values():
        size = len(to_vector(part))
        columns = [about.block(part)(column) for column in torch.eye(size, dtype=torch.float64)]
        torch.testing.assert_close(torch.stack(columns), hessian[begin : begin + size, begin : begin + size])
        begin += size
    assert begin == len(hessian)


@pytest.mark.parametrize("known", [0, 2])
@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_trace_samples_are_vectors_times_product_by_parameter(view: ModelView, room: int, known: int) -> None:
    hessian, about = explicit(view)[2], Curvature(view, room)
    signs = random_signs(about.gradient, 5, torch.Generator().manual_seed(0))
    directions, basis = about.known_directions(known), torch.linalg.qr(hessian[:, :3])[0].T
    for direction in basis:
        torch.testing.assert_close(directions(direction), hessian @ direction)
    kept, samples = dict(about._kept), about.trace_samples(signs, directions)
    for number, vector in enumerate(signs.double()):
        rest = vector - basis[:known].T @ (basis[:known] @ vector)
        products = rest * (hessian @ rest) + (basis[:known] * (basis[:known] @ hessian)).sum(0)
        for name, part in to_dict(products, like=view.params).items():
            torch.testing.assert_close(samples[name][number], part.sum())
    assert about._kept == kept


def test_kept_graphs_spare_the_passes_that_made_them(view: ModelView, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    loss = ModelView.loss
    monkeypatch.setattr(ModelView, "loss", lambda *args, **kwargs: calls.append(args) or loss(*args, **kwargs))
    passes = {}
    for name, room in ROOMS.items():
        about = Curvature(view, room)
        calls.clear()
        about.matvec(about.gradient)
        passes[name] = len(calls)
    assert passes["all kept"] == 0
    assert 0 < passes["some kept"] < 3
    assert passes["none kept"] == 3


@pytest.mark.parametrize(("room", "forwards"), [(2**30, 0), (0, 3)])
def test_all_vectors_of_the_trace_share_the_graphs(
    view: ModelView, monkeypatch: pytest.MonkeyPatch, room: int, forwards: int
) -> None:
    calls: list[Any] = []
    loss = ModelView.loss
    monkeypatch.setattr(ModelView, "loss", lambda *args, **kwargs: calls.append(args) or loss(*args, **kwargs))
    about = Curvature(view, room)
    calls.clear()
    about.trace_samples(random_signs(about.gradient, 5, torch.Generator()))
    assert len(calls) == forwards


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_trace_continues_without_graphs_when_memory_runs_out(
    view: ModelView, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    about = Curvature(view, room)
    signs = random_signs(about.gradient, 5, torch.Generator().manual_seed(0))
    expected, product, calls = about.trace_samples(signs), tool.Linearization.__call__, []

    def lacking(about: Any, vector: Tensor) -> Tensor:
        calls.append(about)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return product(about, vector)

    monkeypatch.setattr(tool.Linearization, "__call__", lacking)
    samples = about.trace_samples(signs)
    assert len(calls) > 2
    for name in expected:
        torch.testing.assert_close(samples[name], expected[name])
    assert about._kept == {}


def test_kept_graphs_make_room_for_a_micro_batch_that_has_none(
    view: ModelView, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, gradient, hessian = explicit(view)
    about, hvp = Curvature(view, ROOMS["some kept"]), tool.hvp
    assert 0 < len(about._kept) < 3

    def lacking(*arguments: Any) -> Tensor:
        if about._kept:
            raise torch.OutOfMemoryError("out of memory")
        return hvp(*arguments)

    monkeypatch.setattr(tool, "hvp", lacking)
    torch.testing.assert_close(about.matvec(gradient), hessian @ gradient)


def test_graphs_are_dropped_when_memory_runs_out(view: ModelView, monkeypatch: pytest.MonkeyPatch) -> None:
    about = Curvature(view)
    expected = about.matvec(about.gradient)

    def lacking(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(tool.Linearization, "__call__", lacking)
    torch.testing.assert_close(about.matvec(about.gradient), expected)
    assert about._kept == {}


@pytest.mark.parametrize("what", ["loss", "product"])
def test_what_stops_a_trial_is_not_hidden(view: ModelView, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    about = Curvature(view)

    def stopped(*_: Any, **__: Any) -> Tensor:
        raise Exception  # as wandb.agent does in a thread

    if what == "product":
        monkeypatch.setattr(tool.Linearization, "__call__", stopped)
        with pytest.raises(Exception, match=r"^$"):
            about.matvec(about.gradient)
    else:
        monkeypatch.setattr(ModelView, "loss", stopped)
        with pytest.raises(Exception, match=r"^$"):
            Curvature(view)


def view_of(loss: Callable[[nn.Module, Any], Tensor], module: nn.Module | None = None) -> ModelView:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(10, 3).double())
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double() if module is None else module
    return ModelView(Twin(module), Objective(loss, None), {"train": Drawing(10, 4, 0).draw(data)})


def test_loss_with_torch_func_inside_is_measured_without_kept_graphs() -> None:
    """As in physics-informed networks, whose loss has derivatives by the inputs."""

    def residual(module: nn.Module, batch: Any) -> Tensor:
        slope = torch.func.vmap(torch.func.grad(lambda x: module(x).squeeze()))(batch[0])
        return (slope - 1).square().mean()

    view = view_of(residual)
    _, gradient, hessian = explicit(view)
    about = Curvature(view)
    torch.testing.assert_close(about.gradient, gradient)
    torch.testing.assert_close(about.matvec(gradient), hessian @ gradient)
    assert about._kept == {}


def test_tensors_that_are_written_to_between_passes_do_not_spoil_a_product() -> None:
    workspace = torch.empty(4, 3).double()  # which the twin does not know

    def cached(module: nn.Module, batch: Any) -> Tensor:
        inputs = workspace[: len(batch[0])].copy_(batch[0])
        return module(inputs).square().mean()

    view = view_of(cached)
    without = Curvature(view, room=0)
    torch.testing.assert_close(Curvature(view).matvec(without.gradient), without.matvec(without.gradient))


def test_room_counts_the_gradients_of_every_micro_batch() -> None:
    wide = nn.Embedding(1000, 50)

    def few(module: nn.Module, batch: Any) -> Tensor:
        return module(batch[0][:, 0].abs().long()).square().mean()

    view = view_of(few, wide)
    assert len(Curvature(view, room=2.5 * wide.weight.nbytes)._kept) == 2
