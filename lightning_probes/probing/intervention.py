"""A callback that changes training on purpose."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_probes.probing.moment import gradients_of
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.stepwise import Stepwise, Taken
from lightning_probes.results import Result


@dataclass(frozen=True)
class OptimizerStep:
    """An optimizer step of training that is about to be taken, for an `Intervention` to change.

    Attributes:
        step: The logger's step; the first is 0.
        module: The user's module itself.
        gradients: Training's own gradients of the parameters that this optimizer updates, by parameter name, before
            clipping. Change them in place.
        batch: The batch of these gradients; the last one if several were accumulated.
        is_reported: Whether the results of this step are reported.
        processes: The processes of the run. Gradients are equal in all of them, and must remain equal.
    """

    step: int
    module: nn.Module
    gradients: Mapping[str, Tensor]
    batch: Any
    is_reported: bool
    processes: Processes


class Intervention(Stepwise):
    """Changes training on purpose, at every optimizer step. The log and the run's config say that it does.

    A new intervention overrides `intervene`. With a coefficient of 0 (or a factor of 1) it should keep training
    bit-identical. The process's random generators are restored after each call.

    Args:
        name: Prefix of the intervention's keys, and its key in a checkpoint.
        schedule: The steps at which results are reported. The intervention itself works at every optimizer step.
        on_flag: What happens, besides logging, when a flag of level "warning" is raised: "alert" sends a W&B alert,
            "stop" also ends training.
        on_error: "raise" stops training if the intervention fails. "warn" reports the error once and continues with the
            gradients from before this step, of which it keeps a copy.
        seed: Determines every random number of the intervention.

    Attributes:
        carried: See `Scheduled`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_probes import EveryNSteps, Scalar
        >>> class GradientScale(Intervention):
        ...     def intervene(self, step):
        ...         for gradient in step.gradients.values():
        ...             gradient.mul_(0.5)
        ...         yield Scalar("coefficient", 0.5)
        >>> GradientScale(name="scale", schedule=EveryNSteps(50)).name
        'scale'
    """

    recorded: Mapping[str, Any] = {"kind": "intervention", "changes_training": True}
    _batch: Any

    @abstractmethod
    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        """Change training just before an optimizer takes a step.

        Args:
            step: The step.

        Returns:
            Results under relative keys, which are reported at due steps.
        """

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the batch, and find out whether the next step is reported."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batch = batch

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Intervene."""
        if not self.progress.started or self.progress.failed:
            return
        if not (gradients := gradients_of(pl_module, optimizer)):
            return
        run, (due, self._is_due) = TrainerRun(trainer, pl_module), (self._is_due, False)
        shown, processes = MappingProxyType(gradients), self.progress.processes  # read-only: assigning has no effect
        step = OptimizerStep(run.step, run.module, shown, self._batch, due, processes)
        taken = self._intervened(run, step)
        if taken is not None:
            self.progress.log.carried = self.carried
        if due and taken is None:
            self.progress.log.due.done(run.step)
        self._taken = taken if due else self._taken

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report a due step, and release the batch."""
        self._batch = None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batch": None}

    def _let_go(self) -> None:
        super()._let_go()
        self._batch = None

    def _intervened(self, run: Run, step: OptimizerStep) -> Taken | None:
        before = []
        if self.on_error == "warn":
            before = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in step.module.parameters()]
        taken = self._before(run, lambda: self.intervene(step))
        if taken is None:
            with torch.no_grad():
                for parameter, gradient, content in before:
                    parameter.grad = gradient  # another may have taken its place
                    if gradient is not None and content is not None:
                        gradient.copy_(content)
        return taken

    def _try_out(self, run: Run) -> None:
        self.say.info("changes training on purpose")
