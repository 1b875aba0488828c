"""A plain module as a `Run`: no Trainer, one process, and no reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lightning_probes.probing.data.drawing import DataSources
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.optimizers import OptimizerGroup
from lightning_probes.probing.run.progress import Progress
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.schedules import Schedule


@dataclass
class BareRun:
    """One measurement of a module; see `Run`.

    Args:
        module: The module.
        loader: The data that probe data is drawn from.
    """

    module: nn.Module = field(default_factory=nn.Identity)
    loader: Any = ()

    step: int = field(default=0, init=False)
    epoch: int = field(default=0, init=False)
    is_single: bool = field(default=True, init=False)
    is_training: bool = field(default=False, init=False)
    is_first: bool = field(default=True, init=False)
    precision: str = field(default="that of the module", init=False)
    planned_steps: float = field(default=float("inf"), init=False)
    gradient_clip: float | None = field(default=None, init=False)
    optimizers: Sequence[OptimizerGroup] = field(default=(), init=False)
    loggers: Sequence[Any] = field(default=(), init=False)
    siblings: Sequence[Progress] = field(default=(), init=False)
    files: Path | None = field(default=None, init=False)
    writes_at_once: bool = field(default=False, init=False)
    checkpoint: Path | None = field(default=None, init=False)
    saved: Sequence[Path] = field(default=(), init=False)
    keeps: float = field(default=0, init=False)
    sample_limit: int | None = field(default=None, init=False)

    @cached_property
    def processes(self) -> Processes:
        """One process."""
        return Processes()

    @property
    def owner(self) -> object:
        """This run itself: it shares its history with no other."""
        return self

    def sources(self, asked: DataSources) -> dict[str, tuple[Any, str]]:
        """The one loader, whatever was requested."""
        return {"train": (self.loader, "max_size_cycle")}

    def has_data(self, name: str) -> bool:
        """Whether `name` is "train"."""
        return name == "train"

    def computing(self) -> AbstractContextManager[Any]:
        """A context that changes nothing: the module keeps its own precision."""
        return nullcontext()

    def convert(self, batch: Any) -> Any:
        """The unchanged batch."""
        return batch

    def waiting(self, info: Callable[[str], None]) -> AbstractContextManager[None]:
        """Do nothing, because there is no clock to stop."""
        return nullcontext()

    def progressing(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """There is no progress bar."""
        return nullcontext(lambda done: None)

    def publish(self, scalars: Mapping[str, float]) -> None:
        """Do nothing, because no callback monitors the scalars."""

    def stop(self) -> bool:
        """Do nothing, because no training runs."""
        return False

    def warn_of_stale_values(self, name: str, schedules: Sequence[Schedule], say: Speaker) -> None:
        """Do nothing, because no callback monitors the scalars."""
