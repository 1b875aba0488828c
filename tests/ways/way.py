"""A way of training, and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from lightning_probes import Probe
from lightning_probes.testing.zoo import Fit
from tests.tester import EVERY, PROBES, Flat, Run, fingerprint, fit


@dataclass(frozen=True)
class Way:
    """One row of the matrix.

    Attributes:
        make: Makes a fresh module and its data.
        isolation: Name of the isolation that the row is about; without it the row must fail.
        trainer: Arguments of the Trainer.
        callbacks: Makes the user's own callbacks.
        told: What a probe needs to be told here, by its kind.
        refused_by: The kinds of probes that have nothing to measure here.
        steps: The steps at which a probe measures; of the last fit, where there are several.
        runs: Runs it, where it is not one `fit`; gives what there is to compare.
    """

    make: Callable[[], Fit]
    isolation: str
    trainer: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], Sequence[L.Callback]] = tuple
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refused_by: frozenset[str] = frozenset(EVERY.keys() - PROBES.keys())
    steps: tuple[int, ...] = (0, 3, 10)
    runs: Callable[[Way, Sequence[Probe], Path], Sequence[Run]] = lambda way, probes, directory: [
        run(way, probes, directory)
    ]

    def train(self, probes: Sequence[Probe], directory: Path) -> Flat:
        """Train with these probes, and give everything that was left behind."""
        runs = self.runs(self, probes, directory)
        return {
            f"{number}/{path}": text for number, each in enumerate(runs) for path, text in fingerprint(each).items()
        }


def run(way: Way, probes: Sequence[Probe], directory: Path, **arguments: Any) -> Run:
    """Two epochs of five batches, with a logger; some probes come before the user's callbacks and some after."""
    directory.mkdir(exist_ok=True)
    callbacks = [*probes[::2], *way.callbacks(), *probes[1::2]]
    defaults = {"max_epochs": 2, "logger": CSVLogger(directory, name="", version="")}
    return fit(way.make, callbacks, directory, **{**defaults, **way.trainer, **arguments})


class SavesInMidStep(L.Callback):
    """Writes a checkpoint after the third batch of each epoch: where gradients are accumulated, between two batches."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/{trainer.current_epoch}.ckpt")


def fits_with_the_same_probes(way: Way, probes: Sequence[Probe], directory: Path) -> list[Run]:
    """A fit, more epochs of it, and a fit of another module by another Trainer."""

    def twice(trainer: Any, made: Fit) -> None:
        trainer.fit(made.module, **made.arguments())
        trainer.fit_loop.max_epochs = 3
        trainer.fit(made.module, **made.arguments())

    first = run(way, probes, directory / "first", drive=twice)
    return [first, run(way, probes, directory / "second", seed=None)]


def one_trainer_after_the_other(way: Way, probes: Sequence[Probe], directory: Path) -> list[Run]:
    """The second has no probes: it must not notice that the first had some."""
    return [run(way, probes, directory / "first"), run(way, [], directory / "second", seed=None)]


def of_the_other_namespace(way: Way, probes: Sequence[Probe], directory: Path) -> list[Run]:
    from pytorch_lightning import Trainer

    return [run(way, probes, directory, kind=Trainer)]


def validation_alone(way: Way, probes: Sequence[Probe], directory: Path) -> list[Run]:
    def validate(trainer: Any, made: Fit) -> None:
        trainer.validate(made.module, made.val, verbose=False)

    return [run(way, probes, directory, drive=validate)]
