"""When a callback is due next in a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_probes.probing.schedules import Schedule

_MOST_IDLE = 100  # so that a step counter that jumps ahead, as after a manual resume, is noticed


class Due:
    """Asks the schedules at each step, epoch and checkpoint of a run; at most one measurement per step.

    Args:
        schedules: A measurement is due when any of them says so.

    Attributes:
        last_step: Step of the last measurement; None before the first.
        checkpoint_written: Whether a checkpoint was written about which the schedules have not been asked yet.

    Example:
        >>> from lightning_probes.probing.schedules import EveryNSteps
        >>> due = Due([EveryNSteps(10)])
        >>> due.plan(0)
        >>> [step for step in range(25) if due.at_step(step)]
        [0, 10, 20]
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self.schedules = schedules
        self.last_step: int | None = None
        self.checkpoint_written = False
        self._last_checkpoint: int | None = None
        self._due_checkpoint: int | None = None
        self._last_epoch = -1
        self._resumed = False
        self._next_step = -math.inf  # before `plan`, any step may be due

    def plan(self, step: int) -> None:
        """Find the next due step for a fit that begins at `step`, which may itself be due."""
        self._next_step = self._after(step - 1 if self.last_step is None else self.last_step)

    def idle_batches(self, step: int) -> int:
        """The number of following batches that need not ask, because each batch takes at most one step.

        If a checkpoint is written meanwhile, ask at the next batch.
        """
        return 0 if self.checkpoint_written else int(max(0, min(self._next_step - step - 1, _MOST_IDLE)))

    def at_step(self, step: int, epoch: int = 0) -> bool:
        """Whether a measurement is due at the start of a batch, by its step or a checkpoint; plans the next one."""
        by_checkpoint = self.at_checkpoint(step)  # always called, because it resets `checkpoint_written`
        by_step = step >= self._next_step
        self._next_step = self._after(step)
        by_epoch = self._left_out(epoch - 1)
        return by_checkpoint or by_step or by_epoch

    def at_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint was written for which a measurement is due."""
        written, self.checkpoint_written = self.checkpoint_written, False
        due = written and any(schedule.at_checkpoint(step, self._last_checkpoint) for schedule in self.schedules)
        if due:
            self._due_checkpoint = step
        return due

    def at_epoch_end(self, epoch: int) -> bool:
        """Whether a measurement is due at the end of an epoch."""
        self._last_epoch = epoch
        return any(schedule.at_epoch_end(epoch) for schedule in self.schedules)

    def at_fit_end(self, step: int, epoch: int = -1) -> bool:
        """Whether a measurement is due at the end of the fit: by the end itself, a checkpoint, or the last epoch."""
        by_checkpoint, by_epoch = self.at_checkpoint(step), self._left_out(epoch)
        return by_checkpoint or by_epoch or any(schedule.at_fit_end() for schedule in self.schedules)

    def done(self, step: int) -> None:
        """Note that the measurement of this step is finished. Checkpoints written before count it as still due."""
        self.last_step = step
        if self._due_checkpoint == step:
            self._last_checkpoint = step

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs; it is saved in checkpoints."""
        return {
            "last_step": self.last_step, "last_checkpoint": self._last_checkpoint, "last_epoch": self._last_epoch
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, about which the schedules have not been asked yet."""
        self.last_step, self._last_checkpoint = state["last_step"], state["last_checkpoint"]
        self._last_epoch = state["last_epoch"]
        self.checkpoint_written = self._resumed = True

    def _left_out(self, epoch: int) -> bool:
        """Whether a measurement is due for the end of an epoch at which the earlier run was already interrupted.

        If a checkpoint was written just before the end of an epoch, the resumed run does not call that hook again.
        """
        resumed, self._resumed = self._resumed, False
        return resumed and self._last_epoch < epoch and self.at_epoch_end(epoch)

    def _after(self, step: int) -> float:
        steps = (schedule.next_step(step) for schedule in self.schedules)
        return min((step for step in steps if step is not None), default=math.inf)
