"""A callback that changes training on purpose."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_probes.probing.checks import naming
from lightning_probes.probing.data.batches import MicroBatch, ProbeSet
from lightning_probes.probing.isolation.quiet import replaying
from lightning_probes.probing.isolation.seeding import derived_seed
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.moment import gradients_of
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.optimizers import Stepping
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.stepwise import Stepwise, Taken
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result


@dataclass(frozen=True)
class OptimizerStep:
    """An optimizer step of training that is about to be taken, for an `Intervention` to change.

    Attributes:
        step: The logger's step; the first is 0.
        module: The user's module itself.
        gradients: Training's own gradients of the parameters that this optimizer updates, by parameter name, before
            clipping. Change them in place. They may have a factor, see `Stepping.scale`.
        batch: The batch of these gradients; the last one if several were accumulated.
        is_reported: Whether the results of this step are reported.
        processes: The processes of the run. Gradients are equal in all of them, and must remain equal.
        stepping: The optimizer that is about to step; None in `Intervention.prepare`.
        look: `with step.look() as view:` gives a view of a twin that is in the present mode of the module, with
            `batch` as its only micro-batch. Its random numbers differ from step to step and from process to process.
    """

    step: int
    module: nn.Module
    gradients: Mapping[str, Tensor]
    batch: Any
    is_reported: bool
    processes: Processes
    stepping: Stepping | None
    look: Callable[[], AbstractContextManager[ModelView]]


class Intervention(Stepwise):
    """Changes training on purpose, at every optimizer step. The log and the run's config say that it does.

    A new intervention overrides `intervene`, and `prepare` to refuse what it can't do. With a coefficient of 0 (or a
    factor of 1) it should keep training bit-identical. The process's random generators are restored after each call.

    Args:
        name: Prefix of the intervention's keys, and its key in a checkpoint.
        schedule: The steps at which results are reported. The intervention itself works at every optimizer step.
        on_flag: What happens, besides logging, when a flag of level "warning" is raised: "alert" sends a W&B alert,
            "stop" also ends training.
        on_error: "raise" stops training if the intervention fails. "warn" reports the error once and continues with the
            gradients from before this step, of which it keeps a copy.
        seed: Determines every random number of the intervention.

    Attributes:
        carried: See `Scheduled`. It is copied at every step, so it is for small values.
        kept: Tensors on the model's device that one step leaves for the next, also in a resumed run. Replace the
            tensors and never write to them: a failed step then changes nothing. Equal in all processes.
        objective: Computes the predictions of `OptimizerStep.look`.

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
    objective = Objective()
    kept: Mapping[str, Tensor]
    _batch: Any
    _restored: Mapping[str, Tensor] = {}

    @abstractmethod
    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        """Change training just before an optimizer takes a step.

        Args:
            step: The step.

        Returns:
            Results under relative keys, which are reported at due steps.
        """

    def prepare(self, step: OptimizerStep) -> None:
        """Check, before the first optimizer step, whether this intervention can work; raise an error if it can't.

        Args:
            step: The first step, when its batch is about to be trained on: without gradients yet.
        """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise errors for settings that can't work, and start to watch for checkpoints."""
        super().setup(trainer, pl_module, stage)
        self._restored = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the batch, and find out whether the next step is reported."""
        self._batch = batch
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Intervene."""
        if not self.progress.started or self.progress.failed:
            return
        if not (gradients := gradients_of(pl_module, optimizer)):
            return
        run, (due, self._is_due) = TrainerRun(trainer, pl_module), (self._is_due, False)
        taken = self._intervened(run, self._step(run, gradients, due, run.stepping(optimizer)))
        if taken is not None:
            self.progress.log.carried = self.carried
        if due and taken is None:
            self.progress.log.due.done(run.step)
        self._taken = taken if due else self._taken

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report a due step, and release the batch."""
        self._batch = None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run, with copies of the kept tensors on the CPU."""
        state = super().state_dict()
        if state is self._loaded or not self.kept:
            return state
        return {**state, "kept": {name: tensor.detach().cpu().clone() for name, tensor in self.kept.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of an earlier run until the next batch of training."""
        super().load_state_dict(state_dict)
        if self._loaded is state_dict:
            self._restored = state_dict.get("kept", {})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batch": None}

    def _reset(self) -> None:
        super()._reset()
        self.kept = {}

    def _let_go(self) -> None:
        super()._let_go()
        self._batch = None

    def _make_ready(self, run: Run) -> None:
        restored, self._restored = self._restored, {}
        self.kept = {name: tensor.to(run.processes.device) for name, tensor in restored.items()} or self.kept

    def _try_out(self, run: Run) -> None:
        self.say.info("changes training on purpose")
        with self.progress.processes.together(), naming(type(self).__name__):
            self.prepare(self._step(run, {}, False, None))
        self.progress.log.carried = self.carried

    def _intervened(self, run: Run, step: OptimizerStep) -> Taken | None:
        before, kept, taken = [], self.kept, None
        if self.on_error == "warn":
            before = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in step.module.parameters()]
        try:
            taken = self._before(run, lambda: self.intervene(step))
        finally:
            self.kept = kept if taken is None else self.kept
        if taken is None:
            with torch.no_grad():
                for parameter, gradient, content in before:
                    parameter.grad = gradient  # another may have taken its place
                    if gradient is not None and content is not None:
                        gradient.copy_(content)
        return taken

    def _step(self, run: Run, gradients: Mapping[str, Tensor], due: bool, stepping: Stepping | None) -> OptimizerStep:
        shown = MappingProxyType(gradients)  # read-only: assigning has no effect
        look = partial(self._look, run, self._batch)
        return OptimizerStep(run.step, run.module, shown, self._batch, due, self.progress.processes, stepping, look)

    @contextmanager
    def _look(self, run: Run, batch: Any) -> Iterator[ModelView]:
        processes = self.progress.processes
        only = MicroBatch(0, 1, batch, transferred=True)
        seed = derived_seed(self.seed, run.step, processes.rank)
        with naming(type(self).__name__, run.step), replaying(run.module, keep=self.on_error == "warn"):
            yield ModelView(
                Twin(run.module, as_it_is=True), self.objective, {"batch": ProbeSet([only], [only.size], only)}, seed,
                optimizers=run.optimizers, step=run.step, run=run, processes=processes,
            )  # fmt: skip
