"""A callback that reads the losses, gradients and step sizes that training computes anyway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from lightning_probes.probing.moment import Moment, gradients_of, moment
from lightning_probes.probing.run.optimizers import Stepping
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.stepwise import Stepwise, Taken
from lightning_probes.results import Result


class Monitor(Stepwise):
    """Reads training's own losses, gradients and step sizes at due steps, and keeps training bit-identical.

    A new monitor overrides `before_step`, `after_step` or both. It makes no pass of its own, and has no twin and no
    probe data. It gets copies of training's tensors, so changes to them do not reach training. Read from the device
    only once per event: use `torch.stack([...]).tolist()` instead of a `float()` for each number.

    With several optimizers, it sees the first one that steps in a due batch. If the class sets `every_optimizer`,
    `before_step` is called for each of them, before its first step in that batch, and `after_step` once.

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
        every_optimizer: Whether all optimizers that step in a due batch are read.

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
    every_optimizer: ClassVar[bool] = False
    _read: Sequence[Optimizer] = ()

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
            self._is_due, self._read = False, (optimizer,)
            self._taken = self._read_before(TrainerRun(trainer, pl_module), optimizer)
        elif self._taken is not None and self.every_optimizer and optimizer not in self._read:
            self._read = (*self._read, optimizer)
            if gradients_of(pl_module, optimizer):
                taken = self._read_before(TrainerRun(trainer, pl_module), optimizer)
                self._taken = taken and taken.following(self._taken)

    def _read_before(self, run: TrainerRun, optimizer: Optimizer) -> Taken | None:
        stepping = run.stepping(optimizer)
        taken = self._before(run, lambda: self.before_step(self._moment(run, run.step, stepping=stepping)))
        if taken is None:
            self.progress.log.due.done(run.step)
        return taken

    def _let_go(self) -> None:
        super()._let_go()
        self._read = ()

    def _after(self, run: Run, loss: Tensor | None) -> Iterable[Result]:
        found = self._computed(lambda: self.after_step(self._moment(run, run.step, loss)), run.step, 1)
        self.progress.log.carried = self.carried
        return found

    def _moment(self, run: Run, step: int, loss: Tensor | None = None, stepping: Stepping | None = None) -> Moment:
        return moment(run.module, step, run.optimizers, loss, self.progress.processes, self.seed, stepping)
