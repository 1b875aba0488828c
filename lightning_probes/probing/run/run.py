"""The interface between a measurement and the place where it happens: a fit, a plain module, a saved checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lightning_probes.probing.data.drawing import DataSources
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.optimizers import OptimizerGroup
from lightning_probes.probing.run.progress import Progress
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.schedules import Schedule


class Run(Protocol):
    """A run at one moment: `TrainerRun` in a fit, `BareRun` without a Trainer, `ReplayRun` at a checkpoint.

    Values that stay constant during a measurement are read once, at the first access.
    """

    @property
    def module(self) -> nn.Module:
        """The user's module."""

    @property
    def step(self) -> int:
        """The logger's step."""

    @property
    def epoch(self) -> int:
        """The epoch."""

    @property
    def is_single(self) -> bool:
        """Whether this is a single measurement, which returns a result or raises an error (`probe.evaluate`)."""

    @property
    def is_training(self) -> bool:
        """Whether training waits while a callback measures."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that reports."""

    @property
    def owner(self) -> object:
        """The object that drives the run, such as a Trainer. Fits with the same owner share one history."""

    @property
    def precision(self) -> str:
        """The precision of training, as Lightning names it, for example "bf16-mixed"."""

    @property
    def planned_steps(self) -> float:
        """The number of optimizer steps that training is planned to take; infinite if it is not known."""

    @property
    def gradient_clip(self) -> float | None:
        """The norm to which training clips gradients; None if it does not clip by norm."""

    @property
    def processes(self) -> Processes:
        """The processes that share the probe data."""

    @property
    def optimizers(self) -> Sequence[OptimizerGroup]:
        """The present parameter groups of the optimizers."""

    @property
    def loggers(self) -> Sequence[Any]:
        """The loggers that receive the events."""

    @property
    def siblings(self) -> Sequence[Progress]:
        """The progress of each probe, monitor and intervention of the run."""

    @property
    def files(self) -> Path | None:
        """The folder for the files of callbacks; None if they keep none. Only the first process may ask."""

    @property
    def writes_at_once(self) -> bool:
        """Whether each event is written to its file immediately, and not only when a checkpoint is written."""

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint from which the run was resumed."""

    @property
    def saved(self) -> Sequence[Path]:
        """The checkpoints that the run has saved so far and kept, and maybe others beside them."""

    @property
    def keeps(self) -> float:
        """How many checkpoints the run keeps at most, as far as is known."""

    @property
    def sample_limit(self) -> int | None:
        """The number of training samples, if the run limits it; otherwise None."""

    def sources(self, asked: DataSources) -> dict[str, tuple[Any, str]]:
        """The requested loaders by name, each with the mode of its `CombinedLoader`.

        Raises:
            MisconfigurationException: If there is no data to measure on; the message names `data`.
        """

    def has_data(self, name: str) -> bool:
        """Whether the run has data called "train" or "val"."""

    def computing(self) -> AbstractContextManager[Any]:
        """A context for a pass: it applies the precision of training, but no autocast."""

    def convert(self, batch: Any) -> Any:
        """A batch, converted to the precision of training."""

    def waiting(self, info: Callable[[str], None]) -> AbstractContextManager[None]:
        """A context in which the run's clocks are stopped; if they can't be, `info` reports that."""

    def progressing(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show how far a measurement of `total` steps is, if the run shows its progress; see `shown_in_bar`."""

    def publish(self, scalars: Mapping[str, float]) -> None:
        """Publish these numbers, so that other callbacks can monitor them."""

    def stop(self) -> bool:
        """End training after this batch. Returns whether this is the first such request."""

    def warn_of_stale_values(self, name: str, schedules: Sequence[Schedule], say: Speaker) -> None:
        """Warn if another callback or a scheduler monitors a key of this callback more often than it is measured."""
