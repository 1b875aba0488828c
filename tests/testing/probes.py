"""Small probes as strangers write them: one that is right, and others that each break one promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_probes import EveryNSteps, Flag, Result, Scalar
from lightning_probes.probing import (
    ModelView,
    Price,
    Probe,
    ProbeArguments,
    Reading,
    check_loss,
    check_number,
    watch_layers,
)


class MeanLoss(Probe):
    """The mean loss, times a factor."""

    price: Sequence[Price] | None = (Price(forward=1),)
    readings: Mapping[str, Reading] = {
        "loss": Reading(
            seen="This is the mean loss.",
            usual="It usually falls.",
            check="Check that it is finite.",
            attempt="Try a lower learning rate if it rises.",
        )
    }

    defaults = ProbeArguments(name="mean_loss", schedule=EveryNSteps(1))

    def __init__(self, *, factor: float = 1.0, **shared: Unpack[ProbeArguments]) -> None:
        super().__init__(**shared)
        check_number("factor", factor, above=0)
        self.factor = factor

    def prepare(self, view: ModelView) -> None:
        check_loss(view)

    def measure(self, view: ModelView) -> Iterator[Result]:
        yield Scalar("loss", self.factor * float(view.mean_loss(view.params)))


class WritesToParameters(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        next(iter(view.params.values())).add_(1e-3)
        return super().measure(view)


class WritesToTheModule(MeanLoss):
    """By a hook of the Trainer, where nothing keeps it from doing so."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        with torch.no_grad():
            next(pl_module.parameters()).mul_(1.0001)


class DrawsFromTheTraining(MeanLoss):
    """Takes a number from the generator that training draws from."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.rand(())
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


class MeasuresWithTheGlobalGenerator(MeanLoss):
    """Which is put back, and stands elsewhere after a break."""

    def measure(self, view: ModelView) -> Iterator[Result]:
        yield Scalar("noise", float(torch.rand(())))


class OwnShareOnly(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        losses = [view.detached.loss(view.params, batch) * batch.size for batch in view.batches()]
        yield Scalar("loss", float(torch.stack(losses).sum()) / sum(batch.size for batch in view.batches()))


class OnlyTheFirstExchanges(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        total = torch.ones(1)
        if view.processes.rank == 0:
            total = view.sum_over_processes(total)
        yield Scalar("processes", float(total))


class ForgetsAtABreak(MeanLoss):
    """Counts in an attribute, which no checkpoint holds."""

    def prepare(self, view: ModelView) -> None:
        self.count = 0

    def measure(self, view: ModelView) -> Iterator[Result]:
        self.count += 1
        yield Scalar("count", float(self.count))


class CountsInTheClass(MeanLoss):
    count = 0

    def measure(self, view: ModelView) -> Iterator[Result]:
        type(self).count += 1
        yield Scalar("count", float(self.count))


class FailsWithARawError(MeanLoss):
    """Takes it for granted that a batch is a pair."""

    def prepare(self, view: ModelView) -> None:
        inputs, _ = view.probe_set().first.content
        assert isinstance(inputs, Tensor), "no tensor"


class KeepsAGraph(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        self.last = [view.loss(view.params | grads(view), batch) for batch in view.batches()]
        yield Scalar("loss", 1.0)


class KeepsTheView(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        self.last = view
        return super().measure(view)


class LeavesAHook(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        view.module.register_forward_hook(lambda *_: None)
        return super().measure(view)


class HooksTheModule(MeanLoss):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.register_forward_hook(lambda *_: None)


class TwoOfOneKey(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        yield Scalar("loss", 1.0)
        yield Scalar("loss", 2.0)


class SwallowsErrors(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        try:
            value = float(view.mean_loss(view.params))
        except Exception:
            value = 0.0
        yield Scalar("loss", value)


class BreaksForGood(MeanLoss):
    """An error leaves it in a state from which it does not recover."""

    busy = False

    def measure(self, view: ModelView) -> Iterator[Result]:
        if self.busy:
            raise RuntimeError("busy")
        self.busy = True
        value = float(view.mean_loss(view.params))
        self.busy = False
        yield Scalar("loss", value)


class TakesAnyFactor(MeanLoss):
    def __init__(self, *, factor: float = 1.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.factor = factor


class Cheaper(MeanLoss):
    """Says that it takes no pass."""

    price = ()


class SaysNoPrice(MeanLoss):
    price = None


class WithoutReadings(MeanLoss):
    readings: Mapping[str, Reading] = {}


class WithAFlag(MeanLoss):
    def measure(self, view: ModelView) -> Iterator[Result]:
        yield from super().measure(view)
        yield Scalar("aside", 1.0, detail=True)
        yield Flag("large", False)


class RefusesSequences(MeanLoss):
    """As it should: before the first step, by name."""

    def prepare(self, view: ModelView) -> None:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        with watch_layers(view.module, lambda name, output: None):
            check_loss(view)
        if any(isinstance(part, torch.nn.LSTM) for part in view.module.modules()):
            raise MisconfigurationException("an LSTM is not measured: pass loss_fn= without it")


def grads(view: ModelView) -> dict[str, Tensor]:
    return {name: p.clone().requires_grad_() for name, p in view.params.items()}
