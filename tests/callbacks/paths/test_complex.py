"""Models with complex parameters: what works with them is right, and what does not is refused before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes import AtFitEnd, Curve, LossPlane, ModeConnectivity, Surface
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised
from tests.tester import fit, probe


class Phases(nn.Module):
    """Hidden units whose incoming weights differ in their imaginary parts alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, dtype=torch.complex64), nn.Linear(6, 3)
        with torch.no_grad():
            self.first.weight.real.fill_(0.3)
            self.first.bias.zero_()
            self.last.weight.copy_(self.last.weight[:, :1].expand(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.to(torch.complex64)).abs())


def network(seed: int) -> Supervised:
    torch.manual_seed(seed)
    return Supervised(Phases())


def refused(words: str, **arguments: Any) -> None:
    kind = "connectivity" if "path" in arguments else "plane"
    started: list[int] = []

    class Counts(Supervised):
        def on_train_batch_start(self, *_: Any) -> None:
            started.append(self.trainer.global_step)

    with pytest.raises(MisconfigurationException, match=words):
        fit(lambda: Fit(Counts(Phases()), loader(labelled(4))), [probe(kind, schedule=AtFitEnd(), **arguments)])
    assert started == []


@pytest.mark.parametrize("path", ["bezier", "string"])
def test_a_path_is_refused_before_the_first_step(path: str) -> None:
    refused(rf"'net\.first\.weight' is complex, and path='{path}' is found for .* pass path='linear'", path=path)


@pytest.mark.parametrize("directions", ["trajectory", "checkpoints"])
def test_a_plane_through_checkpoints_is_refused_before_the_first_step(directions: str) -> None:
    saved = [network(seed).state_dict() for seed in range(2)]
    words = r"'net\.first\.weight' is complex, and planes through .* pass directions='random'"
    refused(words, directions=directions, checkpoints=saved)


def test_the_line_ends_at_the_other_run_and_its_length_has_the_imaginary_parts() -> None:
    module, other = network(0), network(1)
    found = ModeConnectivity(other, num_samples=40).evaluate(module, labelled(4))
    back = ModeConnectivity(module, num_samples=40).evaluate(other, labelled(4))
    curves = [each["connectivity/loss"] for each in (found, back)]
    assert all(isinstance(curve, Curve) for curve in curves)
    assert curves[0].y == pytest.approx(curves[1].y[::-1], rel=1e-6)  # type: ignore[union-attr]
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    squares = [float((here - there).detach().abs().square().sum()) for here, there in pairs]
    assert found["connectivity/distance"].value == pytest.approx(sum(squares) ** 0.5, rel=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("align", ["weights", "activations"])
def test_a_permuted_copy_is_recovered_by_imaginary_parts_too(align: Any) -> None:
    module, copy, order = network(0), network(0), torch.tensor([3, 0, 5, 1, 2, 4])
    with torch.no_grad():
        copy.net.first.weight.copy_(module.net.first.weight[order])
        copy.net.first.bias.copy_(module.net.first.bias[order])
        copy.net.last.weight.copy_(module.net.last.weight[:, order])
    found = ModeConnectivity(copy, align=align, repair=align == "activations", num_samples=40).evaluate(
        module, labelled(4)
    )
    assert found["connectivity/distance"].value > 0.1  # type: ignore[union-attr]
    assert found["connectivity/aligned/distance"].value == 0  # type: ignore[union-attr]


def test_a_random_plane_moves_complex_filters() -> None:
    module = network(0)
    with torch.no_grad():
        module.net.last.weight.zero_()  # a filter of zeros stays where it is, so that only the first layer moves
        module.net.last.weight[0] = 1.0
    found = LossPlane(resolution=3, num_samples=40).evaluate(module, labelled(4))["plane/loss"]
    assert isinstance(found, Surface)
    assert len(set(found.values.flatten().tolist())) == 9


def test_integer_parameters_are_no_part_of_a_path() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
            self.count = nn.Parameter(torch.tensor(2), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.count

    def make() -> Fit:
        return Fit(Supervised(Counting()), loader(labelled(4)))

    torch.manual_seed(1)
    path = ModeConnectivity(make().module, path="bezier", path_steps=8, num_samples=24, micro_batch_size=8)
    fit(make, [path])
    curve, line = (path.results[f"connectivity/{key}"] for key in ("path/loss", "loss"))
    assert curve.y[[0, -1]] == pytest.approx(line.y[[0, -1]], rel=1e-6)  # type: ignore[union-attr]
