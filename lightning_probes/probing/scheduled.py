"""The base class of probes, monitors and interventions: a callback that works on schedule, and reports results."""

from __future__ import annotations

import time
import weakref
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from lightning.pytorch.callbacks import Callback
from typing_extensions import Unpack

from lightning_probes.probing.arguments import ScheduledArguments, check_shared_arguments
from lightning_probes.probing.checks import naming
from lightning_probes.probing.constructor import Constructed
from lightning_probes.probing.run.announce import announce, guarded
from lightning_probes.probing.run.checkpoints import watch_checkpoints
from lightning_probes.probing.run.events import draw_last, event_of
from lightning_probes.probing.run.log import RunLog
from lightning_probes.probing.run.measurements import LastRun, Measurements
from lightning_probes.probing.run.progress import Progress, check_names, share_of_time
from lightning_probes.probing.run.record import named
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.settings import settings_of
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.trainer import TrainerRun, check_strategy
from lightning_probes.probing.schedules import Schedule
from lightning_probes.reporting import Extreme, Lines, Panel, record_settings, worth_redrawing
from lightning_probes.reporting.wandb.logger import write_often
from lightning_probes.results import Result


class Scheduled(Constructed, Measurements, Callback, ABC):
    """A callback with a schedule. It keeps a history, reports results and flags, resumes, and handles errors.

    Subclass one of the three kinds instead: `Probe` measures on a twin, `Monitor` reads values that training computes
    anyway, `Intervention` changes training.

    Args:
        name: Prefix of the callback's keys, and its key in a checkpoint. Set it to use two callbacks of one class.
        schedule: When the callback is due: one schedule or several. It works at most once per step.
        on_flag: What happens, besides logging, when a flag of level "warning" is raised: "alert" sends a W&B alert,
            "stop" also ends training.
        on_error: "raise" stops training if the callback fails. "warn" reports the error once and continues without this
            event.
        seed: Determines every random number of the callback.

    Attributes:
        carried: Values that one event keeps for the next one, also in a resumed run: tensors on the CPU and plain
            values, under names that the callback chooses. Each checkpoint holds them. A failed event does not change
            them.

    Raises:
        ValueError: If an argument is out of range.
    """

    panels: tuple[Panel, ...] = ()
    headlines: tuple[Lines, ...] = ()  # scalars without a picture over steps, for a workspace
    extremes: tuple[Extreme, ...] = ()  # summary values by which runs are compared
    recorded: Mapping[str, Any] = {}  # in the run's config, besides the arguments; `prepare` may add to it

    def __init__(self, **shared: Unpack[ScheduledArguments]) -> None:
        given = self._complete(shared)
        check_shared_arguments(given)
        self.name = given["name"]
        self.schedule = given["schedule"]
        self.on_flag = given["on_flag"]
        self.on_error = given["on_error"]
        self.seed = given["seed"]
        self.say = Speaker(f"{type(self).__name__} {self.name!r}")
        self._unwatch: Callable[[], None] | None = None
        self._loaded: dict[str, Any] = {}
        self._stage = ""
        self._idle_batches = 0
        write_often()
        self._run_by: Callable[[], Any] = _nobody
        self._last_run = LastRun()
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        # Weak references can't be sent to other processes. A copy has its own key, and does not watch a Trainer.
        state = {**vars(self), "_run_by": _nobody, "_unwatch": None}
        state.pop("state_key", None)
        return state

    # Methods that each kind overrides.

    def _remember_start(self, run: Run) -> None:
        """Remember where the run began, before its files are opened."""

    def _make_ready(self, run: Run) -> None:
        """Prepare at the first batch of a fit, in all processes together."""

    def _try_out(self, run: Run) -> None:
        """Raise errors that the first event would raise, before training time is spent."""

    def _act(self, run: Run) -> None:
        """Work, because the callback is due at the start of a batch, the end of an epoch, or the end of the fit."""

    def _settings(self, run: Run) -> dict[str, Any]:
        """The settings of the callback that the run's config records."""
        return settings_of(self, {}, run)

    # Lightning's hooks.

    @cached_property  # because a Trainer asks for it at every hook
    def state_key(self) -> str:
        """The callback's key in a checkpoint: its name, once it is attached."""
        # A new Trainer raises its own error for two equal keys. The error of `setup` says which argument to set.
        return f"{self.name}@{id(self)}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise errors for settings that can't work, and start to watch for checkpoints."""
        self.state_key, self._stage = self.name, stage
        if stage != "fit":
            return
        check_strategy(trainer)
        check_names([callback.name for callback in TrainerRun(trainer, pl_module).callbacks])
        self._reset_fit()
        self._loaded = {}
        self.progress.log.due.checkpoint_written = False
        self._idle_batches = 0
        self._unwatch = watch_checkpoints(trainer, self._notice_checkpoint)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Act if a step or a checkpoint is due."""
        if self._idle_batches > 0:  # most batches do no more than this
            self._idle_batches -= 1
            return
        run = TrainerRun(trainer, pl_module)
        if self._begin(run) and self.progress.log.due.at_step(run.step, run.epoch):
            self._act(run)
        self._idle_batches = self.progress.log.due.idle_batches(run.step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Act if the end of an epoch is due."""
        run = TrainerRun(trainer, pl_module)
        self._begin_behind_the_last_batch(run)
        if self.progress.log.due.at_epoch_end(run.epoch):
            self._act(run)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Act if the end of the fit, or a checkpoint written since the last step, is due."""
        run = TrainerRun(trainer, pl_module)
        self._begin_behind_the_last_batch(run)
        self._act_last(run, self.progress.log.due.at_fit_end(run.step, run.last_epoch))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Act if `ModelCheckpoint` wrote its last checkpoint after this callback's `on_train_end`."""
        run = TrainerRun(trainer, pl_module)
        if self._begin_behind_the_last_batch(run):  # there was no `on_train_end`
            self.on_train_end(trainer, pl_module)
        elif self.progress.log.due.at_checkpoint(run.step):
            self._act_last(run, True)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore the Trainer."""
        if stage == "fit":
            self._leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the Trainer, and draw the pictures of the results so far. The numbers are already reported."""
        self._leave()
        try:
            draw_last(self, TrainerRun(trainer, pl_module))
        except Exception as error:  # it must not hide the error that ends the fit
            self.say.warn(f"could not draw what it has measured: {error}")

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to continue, except for the content of files beside the run."""
        log = self.progress.log
        return log.state_dict() if log.begun and not self._loaded else self._loaded

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of an earlier run until the next batch of training."""
        if self._stage == "fit":  # validation restores callbacks, too
            self._loaded, self.progress.started = state_dict, False
            self._idle_batches = 0

    # A replay, which calls no hooks.

    def resume_from(self, state: dict[str, Any]) -> None:
        """Begin a replay, or continue an earlier one from its state."""
        self._reset()
        self._loaded, self._run_by = state, _nobody

    def begin(self, run: Run) -> bool:
        """Prepare at the first saved checkpoint. Returns whether measurements are possible."""
        return self._begin(run)

    def work(self, run: Run) -> None:
        """Work at a saved checkpoint."""
        self._act(run)

    def finish(self, run: Run) -> None:
        """End a replay."""
        self._act_last(run, False)
        self._leave()

    # A run, from its first event to its last.

    def _reset(self) -> None:
        """Forget all measurements, because a new run begins."""
        schedules = (self.schedule,) if isinstance(self.schedule, Schedule) else tuple(self.schedule)
        self.carried: dict[str, Any] = {}
        self.progress = Progress(self.name, RunLog(schedules, self.say), self.say)

    def _reset_fit(self) -> None:
        """Keep the measurements, because a new fit begins, which may belong to the same run."""
        self.progress = Progress(self.name, self.progress.log, self.say)

    def _begin(self, run: Run) -> bool:
        """At the first batch of a fit: restore an earlier run, open files and prepare. Returns whether this worked."""
        if self.progress.started:
            return not self.progress.failed
        if run.step == 0 or self._loaded or self._run_by() is not run.owner:
            written = self.progress.log.due.checkpoint_written
            self._reset()
            self.progress.log.due.checkpoint_written = written
        self._run_by = weakref.ref(run.owner)
        progress, log = self.progress, self.progress.log
        progress.begin(run.processes)
        self._last_run.begins(progress)
        with self._guarded(run):
            with progress.processes.together(), naming(type(self).__name__):
                log.begin(progress.processes)
                if self._loaded and (run.step > 0 or not run.is_training):
                    log.take_up(self._loaded, run.checkpoint, progress.processes)
                    self.carried = dict(log.carried)
                    progress.undrawn = not worth_redrawing(len(self.history))
                    progress.flags_unlogged = bool(log.record.risen)
                self._loaded = {}
                self._remember_start(run)
                if run.is_first and (folder := run.files) is not None:
                    log.open(folder, self.name, run.writes_at_once)
                self._make_ready(run)
            run.warn_of_stale_values(self.name, log.due.schedules, self.say)
            self._try_out(run)
            with progress.processes.together():
                progress.settings = self._settings(run)
                if run.is_first:
                    record_settings(run.loggers, self.name, progress.settings)
            progress.failed = False
        log.due.plan(run.step)
        return not progress.failed

    def _begin_behind_the_last_batch(self, run: Run) -> bool:
        """Begin although there is no batch to train on, because an earlier run ended or was killed after the last."""
        return bool(self._loaded) and not self.progress.started and self._begin(run)

    def _is_open(self, step: int) -> bool:
        """Whether an event is possible at this step: nothing has failed, and the step has had no event."""
        progress = self.progress
        return progress.started and not progress.failed and step != progress.log.due.last_step

    def _event(self, run: Run, measure: Callable[[], Iterable[Result]], spent: float = 0.0) -> None:
        """Measure, keep the results, and report them. `spent` is the time in seconds already spent on the event."""
        start, progress, due = time.perf_counter() - spent, self.progress, self.progress.log.due
        with self._guarded(run):
            if not (measured := list(measure())):  # a missing part prevents it, which was already reported
                due.done(run.step)
                return
            with progress.processes.together():
                results = progress.processes.from_first(named(self.name, measured))
                seconds = time.perf_counter() - start
                progress.seconds += seconds
                extra = {f"{self.name}/seconds": seconds}
                if run.is_training:
                    extra["probes/overhead"] = share_of_time(run.siblings)
                flags = progress.log.add(run.step, run.epoch, results, extra)
                announce(run, event_of(self, run, results, flags), self.on_flag)
                progress.seconds += time.perf_counter() - start - seconds
        due.done(run.step)  # also if it failed with on_error="warn"

    def _act_last(self, run: Run, due: bool) -> None:
        if due:
            self._act(run)
        with self._guarded(run), self.progress.processes.together():
            draw_last(self, run)

    def _leave(self) -> None:
        self.progress.log.close()
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _notice_checkpoint(self) -> None:
        self.progress.log.due.checkpoint_written = True
        self._idle_batches = 0

    def _guarded(self, run: Run) -> AbstractContextManager[None]:
        return guarded(run, self.name, self.on_error, self.say)


def _nobody() -> None:
    """Stands in for a Trainer until a run begins."""
