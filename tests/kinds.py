"""Small monitors and an intervention, as somebody would write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from typing_extensions import Unpack

from lightning_probes import EveryNSteps, Result, Scalar
from lightning_probes.probing import (
    Intervention,
    Moment,
    Monitor,
    OptimizerStep,
    ProbeArguments,
    Reading,
    ScheduledArguments,
    check_number,
)  # fmt: skip


class GradientNorm(Monitor):
    """The norm of training's gradients and of its updates, and its loss."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"name": "gradients", "schedule": EveryNSteps(2), **arguments})

    def before_step(self, moment: Moment) -> Iterable[Result]:
        self._before_it = dict(moment.params)
        norms = torch.stack([gradient.norm() for gradient in moment.gradients.values()])
        yield Scalar("norm", float(norms.norm()))

    def after_step(self, moment: Moment) -> Iterable[Result]:
        moved = torch.stack([(moment.params[name] - before).norm() for name, before in self._before_it.items()])
        self.carried["seen"] = self.carried.get("seen", 0) + 1
        yield Scalar("update", float(moved.norm()))
        yield Scalar("seen", self.carried["seen"])
        if moment.loss is not None:
            yield Scalar("loss", float(moment.sum_over_processes(moment.loss)) / moment.processes.size)


class Spoils(Monitor):
    """Does to what it is given whatever it can, and draws random numbers."""

    def __init__(self, do: Callable[[int], object] = lambda step: None, **arguments: Any) -> None:
        super().__init__(**{"name": "spoils", "schedule": EveryNSteps(1), **arguments})
        self.do = do

    def before_step(self, moment: Moment) -> Iterable[Result]:
        torch.rand(3)
        for tensors in (moment.params, moment.gradients, *(s for g in moment.optimizers for s in g.state.values())):
            for tensor in tensors.values():
                if isinstance(tensor, torch.Tensor):
                    tensor.data.fill_(1e3)
        self.do(moment.step)
        yield Scalar("number", float(torch.rand(1)))

    def after_step(self, moment: Moment) -> Iterable[Result]:
        if moment.loss is not None:
            moment.loss.fill_(1e3)
        for tensor in moment.params.values():
            tensor.data.fill_(1e3)
        return ()


class Scale(Intervention):
    """Scales the gradient by a coefficient, and draws a random number."""

    defaults = ProbeArguments(name="scale", schedule=EveryNSteps(2))
    readings: Mapping[str, Reading] = {
        "*": Reading(
            seen="The gradient is scaled by this.",
            usual="It is what was asked for.",
            check="Check the learning rate, which acts in the same way.",
            attempt="Try another learning rate instead.",
        )
    }

    def __init__(self, coefficient: float = 1.0, **shared: Unpack[ScheduledArguments]) -> None:
        super().__init__(**shared)
        check_number("coefficient", coefficient)
        self.coefficient = coefficient

    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        torch.rand(3)
        self.carried["steps"] = self.carried.get("steps", 0) + 1
        for gradient in step.gradients.values():
            gradient.mul_(self.coefficient)
        yield Scalar("coefficient", self.coefficient)
        yield Scalar("steps", self.carried["steps"])


class GradientScale(Scale):
    """Does something besides, such as to fail when half is done."""

    def __init__(self, coefficient: float, do: Callable[[int], object] = lambda step: None, **arguments: Any) -> None:
        super().__init__(coefficient, **arguments)
        self.do = do

    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        yield from super().intervene(step)
        self.do(step.step)
