"""The network linearised about its initialisation: exact for linear models, and the closer the wider the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, EveryNSteps, InitInterpolation, Scalar
from lightning_probes.testing import Check, cases
from lightning_probes.testing.zoo import CASES
from tests.tester import fit


def data(samples: int = 24) -> DataLoader[Any]:
    draws = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 6, generator=draws)
    return DataLoader(TensorDataset(x, torch.randint(3, (samples,), generator=draws)), 8)


def cross_entropy(module: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def ends(make: Callable[[], nn.Module], step: float = 0.1) -> tuple[nn.Module, nn.Module]:
    """A module, and the same one moved at random."""
    torch.manual_seed(0)
    first, second = make(), make()
    with torch.no_grad():
        for old, new in zip(first.parameters(), second.parameters(), strict=True):
            new.copy_(old + step * torch.randn_like(old))
    return first, second


def measured(first: nn.Module, second: nn.Module, **arguments: Any) -> dict[str, Scalar]:
    probe = InitInterpolation(num_alphas=2, linearized=True, loss_fn=cross_entropy, **arguments)
    found = probe.evaluate(second, data(), first.state_dict())
    return {key.removeprefix("interpolation/"): each for key, each in found.items() if isinstance(each, Scalar)}


MODULES: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True), nn.Flatten(), nn.Linear(6, 3)
    ),
    "convolution and LayerNorm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.LayerNorm(4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "BatchNorm": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_expansion_that_jvp_gives(name: str) -> None:
    first, second = ends(MODULES[name])
    found = measured(first, second)
    start, end = dict(first.named_parameters()), dict(second.named_parameters())
    buffers = dict(second.named_buffers())
    x, y = data().dataset.tensors  # type: ignore[attr-defined]
    second.eval()

    def logits(params: dict[str, Tensor]) -> Tensor:
        return functional_call(second, {**params, **buffers}, (x,))  # type: ignore[no-any-return]

    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        change = {key: end[key] - start[key] for key in start}
        at_start, slope = jvp(logits, (start,), (change,))  # type: ignore[no-untyped-call]
        at_end = logits(end)
    expected = (at_start + slope - at_end).norm() / (at_end - at_start).norm()
    assert found["linearized_error"].value == pytest.approx(float(expected), rel=1e-4)
    accuracy = ((at_start + slope).argmax(1) == y).float().mean()
    assert found["linearized_accuracy"].value == pytest.approx(float(accuracy))


def test_it_is_exact_for_a_model_that_is_linear_in_its_parameters() -> None:
    found = measured(*ends(lambda: nn.Linear(6, 3), step=1.0))
    assert found["linearized_error"].value < 1e-6
    assert found["linearized_error"].standard_error is not None


def test_one_layer_alone_may_move() -> None:
    first, second = ends(MODULES["tanh"])
    second.load_state_dict({**first.state_dict(), "2.weight": second.state_dict()["2.weight"]})
    assert measured(first, second)["linearized_error"].value < 1e-6
    assert measured(first, second, layers="2")["linearized_error"].value < 1e-6


def test_it_is_absent_as_long_as_the_logits_have_not_moved() -> None:
    first, _ = ends(MODULES["tanh"])
    found = measured(first, first)
    assert "linearized_error" not in found
    assert "linearized_accuracy" in found


class Wide(nn.Module):
    """One hidden layer in NTK parametrisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(width, 6)), nn.Parameter(torch.randn(3, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.first.T / 6**0.5) @ self.second.T / len(self.first) ** 0.5


def trained_error(width: int, seed: int) -> float:
    torch.manual_seed(seed)
    module = Wide(width)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    x, y = data(64).dataset.tensors  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        (module(x) - nn.functional.one_hot(y, 3)).square().sum(1).mean().backward()
        optimizer.step()
    probe = InitInterpolation(num_alphas=2, linearized=True, loss_fn=cross_entropy)
    found = probe.evaluate(module, data(64), before)["interpolation/linearized_error"]
    assert isinstance(found, Scalar)
    return found.value


def test_the_error_falls_as_one_over_the_width() -> None:
    narrow, wide = (sum(trained_error(width, seed) for seed in range(5)) / 5 for width in (128, 2048))
    assert 8 < narrow / wide < 32  # 16 times the width


class ByHand(torch.autograd.Function):
    """A custom function without a forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


class Doubles(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return ByHand.apply(super().forward(x))  # type: ignore[no-any-return, no-untyped-call]


def test_a_model_without_forward_mode_derivatives_is_refused_by_the_argument() -> None:
    with pytest.raises(MisconfigurationException, match=r"linearized=True needs forward-mode.*pass linearized=False"):
        measured(*ends(lambda: Doubles(6, 3)))


def test_a_fit_reports_it_under_its_keys() -> None:
    probe = InitInterpolation(
        num_alphas=2, linearized=True, num_samples=16, schedule=[EveryNSteps(2), AtFitEnd()], data="train"
    )
    fit(CASES["cnn"].make, [probe])
    assert "interpolation/linearized_error" not in probe.history[0]  # nothing has moved at step 0
    assert all(entry["interpolation/linearized_error"] > 0 for entry in probe.history[1:])
    assert any(panel.key == "linearized_error" for panel in probe.headlines)


@pytest.mark.parametrize(
    "check",
    [
        each
        for each in cases(InitInterpolation, linearized=True, num_alphas=2)
        if each.__name__.split("-")[0] in ("processes", "resumed", "declaring")
    ],
)
def test_it_keeps_the_promises(check: Check) -> None:
    check()
