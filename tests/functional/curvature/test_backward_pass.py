from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_probes.functional.curvature.backward_pass import is_backward_of_another, is_backward_unseen

DRAWS = torch.Generator().manual_seed(0)
POINT = {"x": torch.randn(5, 3, generator=DRAWS, dtype=torch.float64), "y": torch.ones(3, dtype=torch.float64)}


def with_slope(slope: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]) -> Any:
    """x y², with a backward pass of one's own."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            ctx.save_for_backward(x, y)
            return x * y**2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
            return tuple(slope(grad, *ctx.saved_tensors))

    def operation(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [Product.apply(inputs["x"], inputs["y"])]

    return operation


# By name: the gradients by x and y, whether autograd misses something of them, whether they are those of another.
CASES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]], bool, bool]] = {
    "right": (lambda g, x, y: (g * y**2, (2 * g * x * y).sum(0)), False, False),
    "straight through": (lambda g, x, y: (g, torch.zeros_like(y)), False, True),
    "reversed": (lambda g, x, y: (-g * y**2, -(2 * g * x * y).sum(0)), False, True),
    "right, detached": (lambda g, x, y: ((g * y**2).detach(), (2 * g * x * y).sum(0).detach()), True, False),
    "right, detached by one input": (lambda g, x, y: (g * y**2, (2 * g * x * y.detach()).sum(0)), True, False),
    "right, its factor detached": (lambda g, x, y: (g * y.detach() ** 2, (2 * g * x * y).sum(0)), True, False),
    "not finite": (lambda g, x, y: (g / 0, 0 * y), False, False),
}


@pytest.mark.parametrize("what", CASES)
def test_backward_pass_is_judged_by_what_autograd_sees_and_by_the_forward_pass(what: str) -> None:
    slope, unseen, of_another = CASES[what]
    assert is_backward_unseen(with_slope(slope), POINT, DRAWS) == unseen
    assert is_backward_of_another(with_slope(slope), POINT, DRAWS) == of_another


@pytest.mark.parametrize("function", [torch.relu, torch.abs, lambda x: x.cummax(0)[0], lambda x: x.clamp(-0.1, 0.1)])
@pytest.mark.parametrize("x", [POINT["x"], torch.zeros(5, 3, dtype=torch.float64)], ids=["anywhere", "at a kink"])
def test_kinks_are_no_reason(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    assert not is_backward_unseen(lambda inputs: [function(inputs["x"])], {"x": x}, DRAWS)
    assert not is_backward_of_another(lambda inputs: [function(inputs["x"])], {"x": x}, DRAWS)


def test_inputs_are_left_as_they_are() -> None:
    before = {name: tensor.clone() for name, tensor in POINT.items()}
    is_backward_unseen(lambda inputs: [inputs["x"].mul_(inputs["y"])], POINT, DRAWS)
    assert all(torch.equal(before[name], POINT[name]) and not POINT[name].requires_grad for name in POINT)
