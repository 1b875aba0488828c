"""What a measurement asks of where it takes place: a fit, a module by itself, a saved checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lightning_probes.probing.data.drawing import DataSource
from lightning_probes.probing.run.optimizers import OptimizerGroup
from lightning_probes.probing.run.processes import Processes
from lightning_probes.probing.run.progress import Progress
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.schedules import Schedule


class Run(Protocol):
    """A run at one moment: `TrainerRun` in a fit, `BareRun` without a Trainer, `ReplayRun` at a checkpoint.

    What does not change within a measurement is read once, when it is first asked for.
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
        """Whether this is one measurement by itself, which gives a result or says why not."""

    @property
    def is_training(self) -> bool:
        """Whether training waits while callbacks work."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that reports."""

    @property
    def owner(self) -> object:
        """What drives the run. Fits with one owner continue one history."""

    @property
    def precision(self) -> str:
        """The precision of training, in Lightning's words."""

    @property
    def gradient_clip(self) -> float | None:
        """The norm that training clips gradients to; None if it does not."""

    @property
    def processes(self) -> Processes:
        """Those that share the probe data."""

    @property
    def optimizers(self) -> Sequence[OptimizerGroup]:
        """The parameter groups of the optimizers as they are now."""

    @property
    def loggers(self) -> Sequence[Any]:
        """Where events are reported."""

    @property
    def siblings(self) -> Sequence[Progress]:
        """The progress of each probe, monitor and intervention of the run."""

    @property
    def files(self) -> Path | None:
        """The folder for what callbacks keep beside the run; None if they keep nothing. Ask in the first process."""

    @property
    def writes_at_once(self) -> bool:
        """Whether each event is written to its file as it comes, and not only when a checkpoint is written."""

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that the run goes on from."""

    @property
    def sample_limit(self) -> int | None:
        """How many samples there are to train on, if the run limits them."""

    def sources(self, asked: Sequence[DataSource]) -> dict[str, tuple[Any, str]]:
        """The loaders that are meant, "train" first, each with the mode of its `CombinedLoader`.

        Raises:
            MisconfigurationException: If nothing is left to measure on; names `data`.
        """

    def has_data(self, name: str) -> bool:
        """Whether the run has data called "train" or "val"."""

    def computing(self) -> AbstractContextManager[Any]:
        """The precision of training during a pass, without autocast."""

    def convert(self, batch: Any) -> Any:
        """A batch in the precision of training."""

    def waiting(self, info: Callable[[str], None]) -> AbstractContextManager[None]:
        """The run's clocks stand still meanwhile; `info` says if they can't."""

    def publish(self, scalars: Mapping[str, float]) -> None:
        """Let callbacks monitor these numbers."""

    def stop(self) -> bool:
        """End training after this batch; whether nobody else has asked for that yet."""

    def warn_of_stale_values(self, name: str, schedules: Sequence[Schedule], say: Speaker) -> None:
        """Warn if somebody monitors a key of this callback more often than it is measured."""
