"""When one callback is due next in one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_probes.probing.schedules import Schedule

_MOST_IDLE = 100  # for a run that jumps ahead, as one that somebody resumes by hand


class Due:
    """What schedules make of a run's steps, epochs and checkpoints; at most one measurement a step.

    Args:
        schedules: Whichever of them asks first.

    Attributes:
        last_step: Step of the last measurement; None before the first.
        checkpoint_written: Whether a checkpoint was written that nobody has asked the schedules about.

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
        self._next_step = -math.inf  # until it is planned, any step may be due

    def plan(self, step: int) -> None:
        """A fit begins at this step: look for the next one that is due, which may be this one."""
        self._next_step = self._after(step - 1 if self.last_step is None else self.last_step)

    def idle_batches(self, step: int) -> int:
        """How many batches after one of this step need not ask again, since a batch takes one step at most.

        Unless a checkpoint is written meanwhile.
        """
        return 0 if self.checkpoint_written else int(max(0, min(self._next_step - step - 1, _MOST_IDLE)))

    def at_step(self, step: int, epoch: int = 0) -> bool:
        """Whether the start of a batch is due, by its step or by a checkpoint; plans the next one."""
        by_checkpoint = self.at_checkpoint(step)  # asked first, because it forgets the checkpoint
        by_step = step >= self._next_step
        self._next_step = self._after(step)
        by_epoch = self._left_out(epoch - 1)
        return by_checkpoint or by_step or by_epoch

    def at_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint was written, and is due."""
        written, self.checkpoint_written = self.checkpoint_written, False
        due = written and any(schedule.at_checkpoint(step, self._last_checkpoint) for schedule in self.schedules)
        if due:
            self._due_checkpoint = step
        return due

    def at_epoch_end(self, epoch: int) -> bool:
        """Whether the end of an epoch is due."""
        self._last_epoch = epoch
        return any(schedule.at_epoch_end(epoch) for schedule in self.schedules)

    def at_fit_end(self, step: int, epoch: int = -1) -> bool:
        """Whether the end of the fit is due, by itself, by a checkpoint, or by the end of its last epoch."""
        by_checkpoint, by_epoch = self.at_checkpoint(step), self._left_out(epoch)
        return by_checkpoint or by_epoch or any(schedule.at_fit_end() for schedule in self.schedules)

    def done(self, step: int) -> None:
        """What was due at this step was measured. Until then, a checkpoint has it as not measured."""
        self.last_step = step
        if self._due_checkpoint == step:
            self._last_checkpoint = step

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, to be written into a checkpoint."""
        return {
            "last_step": self.last_step, "last_checkpoint": self._last_checkpoint, "last_epoch": self._last_epoch
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, which is one that was written and that nobody has measured after."""
        self.last_step, self._last_checkpoint = state["last_step"], state["last_checkpoint"]
        self._last_epoch = state["last_epoch"]
        self.checkpoint_written = self._resumed = True

    def _left_out(self, epoch: int) -> bool:
        """Whether the end of an epoch is due that an earlier run did not live to see.

        Lightning does not repeat the end of an epoch for a checkpoint that was written just before it.
        """
        resumed, self._resumed = self._resumed, False
        return resumed and self._last_epoch < epoch and self.at_epoch_end(epoch)

    def _after(self, step: int) -> float:
        steps = (schedule.next_step(step) for schedule in self.schedules)
        return min((step for step in steps if step is not None), default=math.inf)
