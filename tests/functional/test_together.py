"""Several cotangents in one backward pass have the norms that each has by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_probes.functional.layer_capture import Capture
from lightning_probes.functional.norm_plan import PlannedNorms, Way, owners_of
from lightning_probes.functional.per_sample_norms import choose_methods, hold_together, squared_norms
from tests.functional.test_per_sample_norms import RULES, SAMPLES, STRUCTURES, Net, floats

CASES: dict[str, Callable[[], Any]] = {**RULES, **{name: build for name, (build, _) in STRUCTURES.items()}}


def cotangents(logits: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(logits.shape, generator=generator).to(logits) for _ in range(6)]


def planned(module: nn.Module, forward: Callable[[], Tensor]) -> PlannedNorms:
    return PlannedNorms(module, choose_methods(module, forward), owners_of(module))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The cotangents of each backward pass."""
    seen: list[Tensor] = []
    backward = Capture.backward

    def counted(capture: Capture, logits: Tensor, cotangent: Tensor, visit: Any) -> None:
        seen.append(cotangent)
        backward(capture, logits, cotangent, visit)

    monkeypatch.setattr(Capture, "backward", counted)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_norms_are_the_same_together_wherever_that_is_said_to_hold(name: str, passes: list[Tensor]) -> None:
    module, inputs = CASES[name]()
    module = module.double().eval()
    plan = planned(module, lambda: module(*inputs))
    holds = hold_together(plan, lambda: module(*inputs), cotangents)
    if name in RULES:  # inputs, which all cotangents share, can't be multiplied in place by what they don't
        assert holds == (name != "linear on short sequences")
    expected = squared_norms(plan, lambda: module(*inputs), cotangents)
    passes.clear()
    found = squared_norms(plan, lambda: module(*inputs), cotangents, together=holds)
    assert len(passes) == (1 if holds else 6)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Doubled(torch.autograd.Function):
    """An operation of somebody's own, that vmap can't look into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.from_numpy(2 * grad.numpy())


def attended(x: Tensor) -> Tensor:
    """Attention has no kernel for batches of gradients on CPU: vmap takes them one by one, and more slowly."""
    tokens = x.view(len(x), 1, 3, 2)
    return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


def differing() -> Callable[[Tensor], Tensor]:
    count = itertools.count(1)

    def forward(x: Tensor) -> Tensor:
        x = 1 * x
        x.register_hook(lambda grad: grad * next(count))
        return x

    return forward


@pytest.mark.parametrize("between", [Doubled.apply, attended, differing()], ids=["numpy", "attention", "differing"])
def test_what_can_not_be_batched_or_only_slowly_does_not_hold(between: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda net, x: net.outer(between(net.inner(x))), inner=nn.Linear(4, 6), outer=nn.Linear(6, 3))
    x = floats(SAMPLES, 4).float()
    ways = PlannedNorms(net, {name: Way("rule", name) for name in ("inner", "outer")}, owners_of(net))
    for _ in range(2):  # a warning may come once
        assert not hold_together(ways, lambda: net(x), cotangents)


@pytest.mark.parametrize(("width", "number"), [(2**14, 4), (2**15, 1)])
def test_as_many_go_together_as_keep_a_layers_gradients_in_cache(width: int, number: int, passes: list[Tensor]) -> None:
    module, x = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 3)), torch.randn(4, 3)
    ways = planned(module, lambda: module(x))
    passes.clear()
    norms = squared_norms(ways, lambda: module(x), cotangents, together=True)
    assert norms.shape == (6, 4, 4)
    assert len(passes) == -(-6 // number)
