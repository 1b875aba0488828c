"""A monitor and interventions as strangers write them, that each break one promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import torch

from lightning_probes import EveryNSteps, Result, Scalar
from lightning_probes.probing import Moment, Monitor, OptimizerStep, Price, ProbeArguments, Reading
from tests.kinds import Scale


class NeverQuiteOff(Scale):
    """Adds something whatever its coefficient is."""

    def intervene(self, step: OptimizerStep) -> Iterator[Result]:
        for gradient in step.gradients.values():
            gradient.add_(1e-6)
        yield from super().intervene(step)


class ChangesNothing(Scale):
    def intervene(self, step: OptimizerStep) -> Iterator[Result]:
        yield Scalar("coefficient", self.coefficient)


class ForgetsWhenItBegan(Scale):
    """Works less and less, by a count that no checkpoint holds; reports what is the same all the time."""

    def prepare_count(self) -> None:
        self.passed = count(1)

    def intervene(self, step: OptimizerStep) -> Iterator[Result]:
        if not hasattr(self, "passed"):
            self.prepare_count()
        for gradient in step.gradients.values():
            gradient.mul_(1 + self.coefficient / next(self.passed))
        yield Scalar("coefficient", self.coefficient)


class DiffersByProcess(Scale):
    """Of which each process makes something else, and says nothing of it."""

    def intervene(self, step: OptimizerStep) -> Iterator[Result]:
        for gradient in step.gradients.values():
            gradient.mul_(self.coefficient + (0.1 * step.processes.rank if self.coefficient != 1 else 0))
        yield Scalar("coefficient", self.coefficient)


class WritesToWeights(Scale):
    """What an error does not undo."""

    def intervene(self, step: OptimizerStep) -> Iterator[Result]:
        with torch.no_grad():
            for parameter in step.module.parameters():
                parameter.mul_(self.coefficient)
        yield Scalar("coefficient", self.coefficient)


class PassesForNothing(Scale):
    """Takes a pass over the batch that no price declares."""

    def intervene(self, step: OptimizerStep) -> Iterator[Result]:
        training = step.module.training
        with torch.no_grad():
            step.module.eval()(step.batch[0])
            step.module.train(training)
        yield from super().intervene(step)


class PassesForItsPrice(PassesForNothing):
    price = (Price(forward=1),)


class SumsNorms(Monitor):
    """Adds up over processes what each of them has already: the same in all of them, and wrong."""

    defaults = ProbeArguments(name="sums", schedule=EveryNSteps(2))
    readings: Mapping[str, Reading] = Scale.readings

    def before_step(self, moment: Moment) -> Iterator[Result]:
        norms = torch.stack([gradient.norm() for gradient in moment.gradients.values()])
        yield Scalar("norm", float(moment.sum_over_processes(norms).norm()))
