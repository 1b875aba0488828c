"""What attached probes and monitors cost while none is due, on a very small model.

One fit trains on; a callback exchanges the Trainer's callbacks after each step: four probes, four empty callbacks, four
empty callbacks, four probes, ... So both are timed in one process, milliseconds apart.
"""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from benchmarks.cells import Row, apart
from benchmarks.timing import now
from benchmarks.work import Lit
from lightning_probes import EveryNSteps, FisherTrace, GradientNorms, InitInterpolation, LayerCKA, Sharpness

STEPS, WARM_UP = 20_000, 300


class Empty(L.Callback):
    """A callback with the hooks of a training step that a probe has, and nothing in them."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pass


class EmptyMonitor(Empty):
    """The same with the hooks of a monitor."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        pass

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


class Exchange(L.Callback):
    """Exchanges the other callbacks after every step, and keeps the seconds that each step took.

    Args:
        sets: By name, two lists of callbacks.
    """

    def __init__(self, sets: dict[str, list[L.Callback]]) -> None:
        self.sets = sets
        self.times: dict[str, list[float]] = {name: [] for name in sets}
        self._start = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        end, step = now(), trainer.global_step
        if step > WARM_UP:  # the first ones draw data
            self.times[self._name(step - 1)].append(end - self._start)
        trainer.callbacks[:] = [self, *self.sets[self._name(step)]]
        self._start = now()

    def _name(self, step: int) -> str:
        first, second = self.sets
        return (first, second, second, first)[step % 4]


NEVER = EveryNSteps(1, start=10**9)


def never_due() -> list[L.Callback]:
    """Four probes at a step that never comes."""
    never: dict[str, Any] = {"schedule": NEVER, "num_samples": 16}
    return [FisherTrace(**never), InitInterpolation(**never), LayerCKA(**never), Sharpness(**never)]


def monitors_never_due() -> list[L.Callback]:
    """A monitor likewise."""
    return [GradientNorms(schedule=NEVER)]


def steps(number: int, monitors: bool = False) -> Row:
    """Seconds a step with probes, or with a monitor, over that with empty callbacks."""
    for name in ("lightning.pytorch", "lightning_probes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    module = Lit(nn.Linear(8, 10))
    data = torch.utils.data.TensorDataset(torch.randn(4000, 8), torch.randint(10, (4000,)))
    probes = monitors_never_due() if monitors else never_due()
    empty = EmptyMonitor if monitors else Empty
    exchange = Exchange({"probes": probes, "empty": [empty() for _ in probes]})
    trainer = L.Trainer(
        max_steps=number, max_epochs=-1, callbacks=[exchange, *probes], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    times = {name: values[: min(map(len, exchange.times.values()))] for name, values in exchange.times.items()}
    ratios = [a / b for a, b in zip(times["probes"], times["empty"], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)  # of neighbours in time: machines drift
    without = statistics.median(times["empty"])
    return {
        "milliseconds": 1e3 * statistics.median(times["probes"]), "empty_milliseconds": 1e3 * without,
        "ratio": ratio, "ratio_low": low, "ratio_high": high,
        "steps": len(ratios), "microseconds_of_hooks": hooks(trainer, probes),
        "microseconds_of_empty": hooks(trainer, [empty() for _ in probes]),
    }  # fmt: skip


def hooks(trainer: L.Trainer, callbacks: Any, calls: int = 20000) -> float:
    """Microseconds a step of the hooks of some callbacks, of which none is due, called by hand."""
    module: Any = trainer.lightning_module
    optimizer = trainer.optimizers[0]
    found = []
    for _ in range(5):
        start = now()
        for _ in range(calls):
            for callback in callbacks:
                callback.on_train_batch_start(trainer, module, None, 0)
                if isinstance(callback, (GradientNorms, EmptyMonitor)):
                    callback.on_before_optimizer_step(trainer, module, optimizer)
                    callback.on_train_batch_end(trainer, module, None, None, 0)
        found.append((now() - start) / calls * 1e6)
    return statistics.median(found)


def rows(options: Any, directory: Path) -> Iterator[Row]:
    """Four probes against four empty callbacks, and a monitor against an empty one."""
    number = STEPS // 10 if options.quick else STEPS
    for what, monitors in (("four probes attached, none due", False), ("a monitor attached, not due", True)):
        found = apart(steps, number, monitors, limit=4 * options.limit, threads=1, clock=options.clock)
        yield {"what": what, **found}
