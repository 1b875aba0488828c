"""Custom `autograd.Function`s, each judged by its own backward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_probes import Sharpness
from lightning_probes.testing.zoo.data import labelled
from lightning_probes.testing.zoo.modules import Supervised

SMALL = {"num_samples": 24, "micro_batch_size": 8}


def measured(module: Supervised, **arguments: Any) -> dict[str, float]:
    found = Sharpness(**SMALL, **arguments).evaluate(module, labelled(4))
    return {key: getattr(result, "value", None) for key, result in found.items()}


# -- functions of which autograd sees everything -----------------------------------------------------------------------


class Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * F.softplus(x).tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        bent = F.softplus(x).tanh()
        return grad * (bent + x * x.sigmoid() * (1 - bent * bent))


class NewStyle(torch.autograd.Function):
    """With a context that is set up apart, a default, two inputs and two outputs of which one is counted."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, power: int = 3) -> tuple[Tensor, Tensor]:
        return scale * x**power, (x > 0).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, ctx.power = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        return grad * scale * ctx.power * x ** (ctx.power - 1), (grad * x**ctx.power).sum(), None


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.sin_())
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 - ctx.saved_tensors[0] ** 2).sqrt()


class Round(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Step(torch.autograd.Function):
    """A spike whose gradient is that of another function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / (1 + ctx.saved_tensors[0].abs()) ** 2


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


# -- functions of which it does not ------------------------------------------------------------------------------------


class ByNumPy(Mish):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.from_numpy(Mish.backward(ctx, grad.detach()).detach().numpy())


class Marked(Mish):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Mish.backward(ctx, grad)


class SlopeApart(torch.autograd.Function):
    """Saves a slope that the forward pass computes, where autograd does not look."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.sigmoid())
        return F.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


class ReLUByNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.from_numpy(grad.detach().numpy() * (ctx.saved_tensors[0].detach().numpy() > 0))


# -- models ------------------------------------------------------------------------------------------------------------


class Applied(nn.Module):
    def __init__(self, *functions: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.head, self.functions = nn.Linear(4, 8), nn.Linear(8, 3), functions
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for function in self.functions:
            hidden = function(hidden)
        return self.head(hidden)


class Plain(Supervised):
    def __init__(self, *functions: Callable[..., Any]) -> None:
        torch.manual_seed(0)
        super().__init__(Applied(*functions))


class Focal(Plain):
    """Weighs samples by how wrong they are, without differentiating the weights."""

    def loss_of(self, batch: Any) -> Tensor:
        losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
        return ((1 - (-losses.detach()).exp()) ** 2 * losses).mean()


class Scales(Applied):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(NewStyle.apply(self.first(x), self.scale)[0])


class FocalScales(Focal):
    def __init__(self) -> None:
        super().__init__()
        self.net = Scales()


class Adversarial(Supervised):
    """Its features are trained against a second head."""

    def __init__(self, back: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Tanh()))
        self.head, self.domain, self.back = nn.Linear(8, 3), nn.Linear(8, 2), back

    def loss_of(self, batch: Any) -> Tensor:
        features, labels = self.net(batch[0]), batch[1]
        return F.cross_entropy(self.head(features), labels) + F.cross_entropy(
            self.domain(self.back(features)), labels % 2
        )


class Quantised(torch.autograd.Function):
    """With a learned step size (Esser et al. 2020)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(x, step)
        return (x / step).round() * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, step = ctx.saved_tensors
        return grad, (grad * ((x / step).round() - x / step)).sum()


class Quantises(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net.functions = (lambda x: Quantised.apply(x, self.net.scale),)


# -- what is said of them ----------------------------------------------------------------------------------------------


def said_of(module: Supervised, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        assert measured(module)["sharpness/lambda_max"] > 0
    return caplog.text


SOUND: dict[str, Callable[[], Supervised]] = {
    "a right function": lambda: Focal(Mish.apply),
    "one with a context of its own": FocalScales,
    "one that writes to its input": lambda: Focal(lambda x: InPlace.apply(0.1 * x)),
    "one that changes nothing": lambda: Focal(lambda x: Scaled.apply(x, 1.0)),
}


@pytest.mark.parametrize("what", SOUND)
def test_sound_function_is_not_to_blame_for_a_detach(what: str, caplog: pytest.LogCaptureFixture) -> None:
    assert "part of the loss is held constant" in said_of(SOUND[what](), caplog)


ANOTHER: dict[str, tuple[Callable[[], Supervised], str]] = {
    "straight through": (lambda: Plain(Round.apply), "Round"),
    "straight through, then a right function": (lambda: Plain(Round.apply, Mish.apply), "Round"),
    "a surrogate gradient": (lambda: Plain(Step.apply), "Step"),
    "scaled": (lambda: Adversarial(lambda x: Scaled.apply(x, 0.1)), "Scaled"),
    "reversed": (lambda: Adversarial(lambda x: Scaled.apply(x, -1.0)), "Scaled"),
}


@pytest.mark.parametrize("what", ANOTHER)
def test_gradients_of_another_function_are_said_to_be_such(what: str, caplog: pytest.LogCaptureFixture) -> None:
    make, name = ANOTHER[what]
    assert f"the backward pass of {name} is not the derivative of the forward pass" in said_of(make(), caplog)


DETACHED: dict[str, tuple[Callable[[], Supervised], Callable[[], Supervised]]] = {
    "straight through": (
        lambda: Plain(Round.apply, torch.tanh),
        lambda: Plain(lambda x: x + ((8 * x).round() / 8 - x).detach(), torch.tanh),
    ),
    "scaled": (
        lambda: Adversarial(lambda x: Scaled.apply(x, 0.1)),
        lambda: Adversarial(lambda x: 0.1 * x + (0.9 * x).detach()),
    ),
    "reversed": (
        lambda: Adversarial(lambda x: Scaled.apply(x, -1.0)),
        lambda: Adversarial(lambda x: (2 * x).detach() - x),
    ),
}


@pytest.mark.parametrize("what", DETACHED)
def test_function_has_the_curvature_of_its_detached_form(what: str) -> None:
    function, detached = (measured(make())["sharpness/lambda_max"] for make in DETACHED[what])
    assert function == pytest.approx(detached, rel=1e-4)


def test_gradients_that_do_not_fit_together_are_refused_and_their_sam_is_measured() -> None:
    with pytest.raises(MisconfigurationException, match=r"backward pass of Quantised is not .*not symmetric.*'sam'"):
        measured(Quantises())
    assert "sharpness/sam" in measured(Quantises(), quantities=("sam",))


def test_functions_are_left_as_they_were() -> None:
    measured(Focal(Mish.apply, Inherits.apply))
    assert "forward" not in vars(Inherits)
    assert Mish.forward.__name__ == "forward"
    assert not hasattr(Mish.forward, "__wrapped__")


class Inherits(Round):
    """Inherits its forward pass."""


@pytest.mark.parametrize("beside", [Plain, Focal])
@pytest.mark.parametrize("kind", [ByNumPy, Marked, SlopeApart, ReLUByNumPy])
def test_function_that_autograd_does_not_see_is_named_and_no_other(kind: Any, beside: Any) -> None:
    with pytest.raises(MisconfigurationException, match=rf"through {kind.__name__}: .*in layers .*net\.first.*'sam'"):
        measured(beside(Mish.apply, kind.apply))


def test_function_that_computes_with_the_module_is_judged_at_its_place(caplog: pytest.LogCaptureFixture) -> None:
    nets: list[Applied] = []

    class Weighs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x + 0 * (x @ nets[-1].head.weight.T).sum()  # which has the dtype of x in the pass alone

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad.clone()

    class Watched(Applied):
        def forward(self, x: Tensor) -> Tensor:
            nets.append(self)
            return self.head(Weighs.apply(self.first(x)))

    module = Focal()
    module.net = Watched()
    assert "part of the loss is held constant" in said_of(module, caplog)


# -- operations of torch.library ---------------------------------------------------------------------------------------


@torch.library.custom_op("tests_of_custom_functions::soft", mutates_args=())
def soft(x: Tensor, by_numpy: bool) -> Tensor:
    return F.softplus(x)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, ctx.by_numpy = inputs
    ctx.save_for_backward(x)


def _slope(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    slope = grad * ctx.saved_tensors[0].sigmoid()
    return (torch.from_numpy(slope.detach().numpy()) if ctx.by_numpy else slope), None


soft.register_autograd(_slope, setup_context=_keep)


def test_operation_of_a_library_is_judged_as_a_function_is(caplog: pytest.LogCaptureFixture) -> None:
    assert "part of the loss is held constant" in said_of(Focal(lambda x: soft(x, False)), caplog)
    with pytest.raises(MisconfigurationException, match=r"through GeneratedBackwardFor_\w+_soft_default: .*net\.first"):
        measured(Focal(lambda x: soft(x, True)))
