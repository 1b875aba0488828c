"""The common base of monitors and interventions: they work at optimizer steps, and report after the batch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from typing_extensions import Unpack

from lightning_probes.probing.arguments import ScheduledArguments
from lightning_probes.probing.checks import signing
from lightning_probes.probing.isolation.seeding import seed_generators
from lightning_probes.probing.run.record import listed
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.scheduled import Scheduled
from lightning_probes.probing.values import refuse
from lightning_probes.results import Result


@dataclass(frozen=True)
class Taken:
    """A due optimizer step: the results so far, before its batch ends."""

    run: Run
    found: list[Result]
    seconds: float

    def following(self, earlier: Taken) -> Taken:
        """Both together, for a second optimizer that steps in the same batch."""
        return Taken(earlier.run, [*earlier.found, *self.found], earlier.seconds + self.seconds)


class Stepwise(Scheduled):
    """A callback that works at an optimizer step: the first one after its schedule makes it due.

    Its event has the step from before the optimizer step. While its code runs, the process's random generators are
    seeded by `seed` and the step. They are restored afterwards.
    """

    _is_due: bool
    _taken: Taken | None

    def __init__(self, **shared: Unpack[ScheduledArguments]) -> None:
        super().__init__(**shared)
        if all(each.at_fit_end() for each in self.progress.log.due.schedules):
            steps = "of steps, epochs or checkpoints (no optimizer step follows the end of a fit)"
            refuse("schedule", steps, self.schedule)
        self._let_go()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_is_due": False, "_taken": None}  # a copy takes no part in a training step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report a due step after it was taken."""
        if self._taken is not None:
            self._report(self._taken, TrainerRun(trainer, pl_module).loss_of(outputs))

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run.

        If another callback saves between a due step and its report here, the step is reported first, but without the
        loss of its batch. The resumed run would never report it.
        """
        taken = self._taken
        if taken is not None and TrainerRun(taken.run.owner, taken.run.module).step > taken.run.step:
            self._report(taken, None)
        return super().state_dict()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise errors for settings that can't work, and start to watch for checkpoints."""
        super().setup(trainer, pl_module, stage)
        self._let_go()

    def _act(self, run: Run) -> None:
        self._is_due = self._is_due or self._is_open(run.step)

    def _report(self, taken: Taken, loss: Any) -> None:
        self._taken = None
        self._event(taken.run, lambda: [*taken.found, *self._after(taken.run, loss)], taken.seconds)

    def _after(self, run: Run, loss: Any) -> Iterable[Result]:
        """Further results of a due step, after its batch has ended."""
        return ()

    def _before(self, run: Run, compute: Callable[[], Iterable[Result]]) -> Taken | None:
        """Compute just before an optimizer step; None if this failed with `on_error="warn"`."""
        start = time.perf_counter()
        with self._guarded(run):
            if self._taken is None:
                self.carried = copy.deepcopy(self.progress.log.carried)  # without changes of a failed step
            return Taken(run, self._computed(compute, run.step), time.perf_counter() - start)
        return None

    def _computed(self, compute: Callable[[], Iterable[Result]], *key: int) -> list[Result]:
        """Compute in all processes or in none, with seeded random generators."""
        with self.progress.processes.together(), signing(type(self).__name__):
            seed_generators(self.seed, *key)
            return listed(compute())

    def _leave(self) -> None:
        super()._leave()
        self._let_go()

    def _let_go(self) -> None:
        self._is_due, self._taken = False, None
