"""A callback that reads the losses, gradients and step sizes that training computes anyway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_probes.probing.moment import Moment, gradients_of, moment
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.stepwise import Stepwise
from lightning_probes.results import Result


class Monitor(Stepwise):
    """Reads training's own losses, gradients and step sizes at due steps, and keeps training bit-identical.

    A new monitor overrides `before_step`, `after_step` or both. It makes no pass of its own, and has no twin and no
    probe data. It gets copies of training's tensors, so changes to them do not reach training. Read from the device
    only once per event: use `torch.stack([...]).tolist()` instead of a `float()` for each number.

    With several optimizers, it sees the first one that steps in a due batch.

    Args:
        name: Prefix of the monitor's keys, and its key in a checkpoint. Set it to use two monitors of one class.
        schedule: When to read: one schedule or several. If the end of an epoch or a checkpoint is due, the monitor
            reads at the next optimizer step. No step follows the end of a fit, so `AtFitEnd()` has no effect, and
            alone it raises an error.
        on_flag: What happens, besides logging, when a flag of level "warning" is raised: "alert" sends a W&B alert,
            "stop" also ends training.
        on_error: "raise" stops training if the monitor fails. "warn" reports the error once and continues without this
            event.
        seed: Determines every random number of the monitor.

    Attributes:
        carried: See `Scheduled`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from lightning_probes import EveryNSteps, Scalar
        >>> class GradientNorm(Monitor):
        ...     def before_step(self, moment):
        ...         norms = [gradient.norm() for gradient in moment.gradients.values()]
        ...         yield Scalar("global", float(torch.stack(norms).norm()))
        >>> GradientNorm(name="gradient_norm", schedule=EveryNSteps(50)).name
        'gradient_norm'
    """

    recorded: Mapping[str, Any] = {"kind": "monitor"}

    def before_step(self, moment: Moment) -> Iterable[Result]:
        """Read just before an optimizer takes a due step, when the gradients are complete.

        Args:
            moment: Training at this moment.

        Returns:
            Results under relative keys, e.g. `Scalar("global_norm", ...)`.
        """
        return ()

    def after_step(self, moment: Moment) -> Iterable[Result]:
        """Read after the step, when its batch has ended. See `before_step`."""
        return ()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Read if the step is due. A step without gradients does not count, as when averaged weights get statistics."""
        if self._is_due and gradients_of(pl_module, optimizer):
            self._is_due, run = False, TrainerRun(trainer, pl_module)
            self._taken = self._before(run, lambda: self.before_step(self._moment(run, run.step)))
            if self._taken is None:
                self.progress.log.due.done(run.step)

    def _after(self, run: Run, loss: Tensor | None) -> Iterable[Result]:
        found = self._computed(lambda: self.after_step(self._moment(run, run.step, loss)), run.step, 1)
        self.progress.log.carried = self.carried
        return found

    def _moment(self, run: Run, step: int, loss: Tensor | None = None) -> Moment:
        return moment(run.module, step, run.optimizers, loss, self.progress.processes, self.seed)
