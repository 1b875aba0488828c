"""A finished run at one of its checkpoints, as a `Run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_probes.probing.run.measurements import Measurements
from lightning_probes.probing.run.optimizers import OptimizerGroup
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.schedules import Schedule


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        path: The file.
        step: The logger's step at which it was saved.
        content: Its content.
    """

    path: Path
    step: int
    content: Mapping[str, Any]


def step_of(content: Mapping[str, Any]) -> int:
    """The logger's step of a Lightning checkpoint.

    Example:
        >>> step_of({"global_step": 3})
        3
    """
    loop = content.get("loops", {}).get("fit_loop", {})
    taken, batches = loop.get("epoch_loop.state_dict", {}), loop.get("epoch_loop.batch_progress", {}).get("total", {})
    if "_batches_that_stepped" not in taken:
        return int(content["global_step"])
    step = int(taken["_batches_that_stepped"])
    # Lightning counts a batch when its last hook has run, and checkpoints are saved before that.
    uncounted = batches.get("processed", 0) > batches.get("completed", 0) and content["global_step"] > step
    return step + int(uncounted)


class ReplayRun(TrainerRun):
    """A fit in the state of a checkpoint; see `Run`.

    Args:
        trainer: A Trainer that is set up and has not trained yet.
        module: Its module, into which the weights of the checkpoint are loaded.
        saved: The checkpoint.
        folder: The folder for the files of callbacks; None if they keep none.
        callbacks: The callbacks that measure.
    """

    is_training = False

    def __init__(
        self, trainer: Any, module: nn.Module, saved: Saved, folder: Path | None, callbacks: Sequence[Measurements]
    ) -> None:
        super().__init__(trainer, module)
        self._saved, self._folder, self._callbacks = saved, folder, callbacks
        self.step = saved.step
        self.epoch = int(saved.content.get("epoch", 0))

    def load(self) -> None:
        """Restore the module, the optimizers and the Trainer's counters from the checkpoint.

        Raises:
            ValueError: If the weights are those of another module; the message names the differences.
        """
        content = dict(self._saved.content)
        module: Any = self.module
        module.on_load_checkpoint(content)
        try:
            module.load_state_dict(content["state_dict"], strict=module.strict_loading)
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint {str(self._saved.path)!r} does not belong to this module: pass the trained module, "
                f"created with the same arguments ({error})"
            ) from error
        if "loops" in content:
            self._trainer.fit_loop.load_state_dict(content["loops"]["fit_loop"])
        for optimizer, state in zip(self._trainer.strategy.optimizers, self._optimizer_states, strict=False):
            optimizer.load_state_dict(state)

    @property
    def has_optimizers(self) -> bool:
        """Whether the checkpoint holds the state of optimizers."""
        return bool(self._optimizer_states)

    @property
    def has_averages(self) -> bool:
        """Whether the checkpoint holds averaged weights instead of those of training itself."""
        return "averaging_state" in self._saved.content

    @property
    def optimizers(self) -> Sequence[OptimizerGroup]:
        """The parameter groups with their saved state; empty if the checkpoint holds no such state."""
        return super().optimizers if self.has_optimizers else ()

    @property
    def callbacks(self) -> list[Measurements]:
        """The callbacks passed to the replay, instead of the Trainer's."""
        return list(self._callbacks)

    @property
    def files(self) -> Path | None:
        """The folder passed to the replay."""
        return self._folder

    @property
    def writes_at_once(self) -> bool:
        """Always true, so that a replay that was killed can continue where it stopped."""
        return True

    @property
    def checkpoint(self) -> Path | None:
        """None, because the files of a replay do not move along with a checkpoint."""
        return None

    @property
    def saved(self) -> Sequence[Path]:
        """The files beside the checkpoint."""
        return sorted(self._saved.path.parent.glob("*.ckpt"))

    @property
    def keeps(self) -> float:
        """As many as there are."""
        return float("inf")

    def waiting(self, info: Callable[[str], None]) -> AbstractContextManager[None]:
        """Do nothing, because no training waits."""
        return nullcontext()

    def stop(self) -> bool:
        """Do nothing, because no training runs."""
        return False

    def warn_of_stale_values(self, name: str, schedules: Sequence[Schedule], say: Speaker) -> None:
        """Do nothing, because no callback monitors the scalars."""

    @property
    def _optimizer_states(self) -> Sequence[Mapping[str, Any]]:
        states: Sequence[Mapping[str, Any]] = self._saved.content.get("optimizer_states", ())
        return states
