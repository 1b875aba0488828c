"""The base of every probe: a callback that measures on schedule, on a twin, and reports."""

from __future__ import annotations

import copy
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_probes.probing.arguments import check_arguments
from lightning_probes.probing.checks import check_parameters, naming
from lightning_probes.probing.data.drawing import DataSource, Drawing
from lightning_probes.probing.data.sizes import suit
from lightning_probes.probing.isolation.quiet import measuring, replaying
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.objective import LossFn, Objective, PredictFn
from lightning_probes.probing.run.announce import OnError, OnFlag, announce, guarded
from lightning_probes.probing.run.checkpoints import watch_checkpoints
from lightning_probes.probing.run.fit import Alone, Fit
from lightning_probes.probing.run.halving import ProbeSets, Samples
from lightning_probes.probing.run.init_state import InitStateSource, load_state
from lightning_probes.probing.run.log import RunLog
from lightning_probes.probing.run.measurements import LastRun, Measurements
from lightning_probes.probing.run.optimizers import optimizer_groups
from lightning_probes.probing.run.processes import Processes
from lightning_probes.probing.run.record import details, named
from lightning_probes.probing.run.settings import settings_of
from lightning_probes.probing.run.siblings import captured, check_names, flag_table, risen, share_of_time
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.stale_values import warn_of_stale_values
from lightning_probes.probing.run.trainer import check_strategy, last_epoch, logger_step, run_directory
from lightning_probes.probing.schedules import Schedule
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import Event, Panel, record_settings, report, worth_redrawing
from lightning_probes.reporting.wandb.logger import write_often
from lightning_probes.results import Result

T = TypeVar("T")


class Probe(Measurements, Callback):
    """A measurement that looks at a training run from the inside and leaves it bit-identical.

    A new probe overrides `measure`, and `prepare` for what it needs to know before training time is spent. It never
    touches a logger, a process group, the Trainer or the user's module.

    Args:
        name: Prefix of the probe's keys, and its key in a checkpoint. Set it to use two probes of a kind.
        schedule: When to measure: one schedule or several. At most once a step.
        data: What to measure on: "train", "val", a DataLoader or a Dataset; for some probes a sequence of those.
        num_samples: How many samples to draw from each; drawn once and reused, so that curves over time compare like
            with like.
        micro_batch_size: The most samples in one pass; bounds the memory. None takes the loader's batch size.
        loss_fn: `loss_fn(module, batch)` returns the mean loss of a batch; None replays `training_step`.
        predict_fn: `predict_fn(module, batch)` returns (logits, targets); None calls `forward`.
        init_state: A checkpoint path or state dict of the initialisation, for a run whose start was not seen.
        on_flag: What a flag of level warning does besides being logged: "alert" sends a W&B alert when it rises, "stop"
            also ends training.
        on_error: "raise" stops training when the probe fails; "warn" says so once and goes on without the measurement,
            for which it keeps one more copy of the parameters while it measures.
        seed: Decides the samples drawn and every random number of the probe.

    Attributes:
        carried: What a measurement leaves to the next one, also over a break: tensors on the CPU and plain values, by
            names of the probe's own. Each checkpoint holds it. A measurement that fails leaves it as it was.

    Raises:
        ValueError: If an argument is out of range.
    """

    panels: tuple[Panel, ...] = ()
    needs_init_state: ClassVar[bool] = False
    chooses_data: ClassVar[bool] = False  # where data is None

    def __init__(
        self,
        *,
        name: str,
        schedule: Schedule | Sequence[Schedule],
        data: DataSource | Sequence[DataSource] | None,
        num_samples: int,
        micro_batch_size: int | None = None,
        loss_fn: LossFn | None = None,
        predict_fn: PredictFn | None = None,
        init_state: InitStateSource | None = None,
        on_flag: OnFlag = "log",
        on_error: OnError = "raise",
        seed: int = 0,
    ) -> None:
        check_arguments(
            name=name, schedule=schedule, data=data, num_samples=num_samples,
            micro_batch_size=micro_batch_size, loss_fn=loss_fn, predict_fn=predict_fn, init_state=init_state,
            on_flag=on_flag, on_error=on_error, seed=seed, may_choose=self.chooses_data,
        )  # fmt: skip
        self.name = name
        self.schedule = schedule
        self.data = data
        self.num_samples = num_samples
        self.micro_batch_size = micro_batch_size
        self.objective = Objective(loss_fn, predict_fn)
        self.init_state = init_state
        self.on_flag = on_flag
        self.on_error = on_error
        self.seed = seed
        self.say = Speaker(f"{type(self).__name__} {name!r}")
        self._unwatch: Callable[[], None] | None = None
        self._loaded: dict[str, Any] = {}
        self._stage = ""
        self._idle_batches = 0
        write_often()
        self._fitted_by: Callable[[], Any] = _nobody
        self._last_run = LastRun()
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        # Weak references can't be sent to other processes, and a copy has a key of its own.
        state = {**vars(self), "_fitted_by": _nobody}
        state.pop("state_key", None)
        return state

    @staticmethod
    def among(trainer: Any) -> list[Probe]:
        """The probes of a Trainer."""
        return [callback for callback in trainer.callbacks if isinstance(callback, Probe)]

    @abstractmethod
    def measure(self, view: ModelView) -> Iterable[Result]:
        """Measure once.

        Args:
            view: The model at this moment, and the probe's data.

        Returns:
            Results under relative keys, e.g. `Scalar("trace", ...)`.
        """

    def prepare(self, view: ModelView) -> None:
        """Raise, before the first optimizer step, for what would fail at the first measurement."""

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether smaller micro-batches give the same results, so that they may be halved where memory lacks.

        Args:
            pairs: A view of a few samples in micro-batches of two.
            singles: A view of the same samples one by one.
        """
        return False

    def evaluate(self, module: nn.Module, loader: Any, init_state: InitStateSource | None = None) -> dict[str, Result]:
        """Measure a module without a Trainer.

        Args:
            module: A LightningModule, or any module where `loss_fn` or `predict_fn` are given. It is left as it was.
            loader: A DataLoader or Dataset to draw the probe data from.
            init_state: The initialisation, for probes that compare with it; by default the argument of the constructor.

        Returns:
            The results by full key.

        Example:
            >>> import torch
            >>> from lightning_probes import Sharpness
            >>> data = torch.utils.data.TensorDataset(torch.randn(32, 2), torch.randn(32, 1))
            >>> probe = Sharpness(loss_fn=lambda module, batch: (module(batch[0]) - batch[1]).square().mean())
            >>> "sharpness/lambda_max" in probe.evaluate(nn.Linear(2, 1), data)
            True
        """
        probe = copy.copy(self)  # so that nothing passes between this measurement and those of a fit
        probe._reset()
        with measuring(), naming(type(self).__name__), replaying(module, keep=True):
            drawing = Drawing(self.num_samples, self.micro_batch_size, self.seed)
            samples = Samples(lambda how: {"train": how.draw(loader)}, drawing)
            source = self.init_state if init_state is None else init_state
            initial = None if source is None else load_state(source, module)

            def look(data: ProbeSets) -> ModelView:
                return ModelView(Twin(module), self.objective, data, self.seed, initial)

            suit(samples, look, Processes(), self.say)
            view = look(samples.sets)
            probe._dry_run(view)
            return named(self.name, probe.measure(view))

    @cached_property  # for a Trainer asks for it at every hook
    def state_key(self) -> str:
        """The probe's key in a checkpoint: its name, once it is attached."""
        # A Trainer refuses two equal keys when it is made, in words of its own; `setup` says which argument to set.
        return f"{self.name}@{id(self)}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what can't work, and start to notice checkpoints."""
        self.state_key, self._stage = self.name, stage
        if stage != "fit":
            return
        check_strategy(trainer)
        check_names(Probe.among(trainer))
        self._fit = Fit()
        self._loaded = {}
        self._log.due.checkpoint_written = False
        self._idle_batches = 0
        self._unwatch = watch_checkpoints(trainer, self._notice_checkpoint)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure if a step or a checkpoint is due."""
        if self._idle_batches > 0:  # all that most batches cost
            self._idle_batches -= 1
            return
        step = logger_step(trainer)
        if self._begin(trainer, pl_module, step) and self._log.due.at_step(step, trainer.current_epoch):
            self._measure_once(trainer, pl_module, step)
        self._idle_batches = self._log.due.idle_batches(step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if the end of an epoch is due."""
        self._begin_behind_the_last_batch(trainer, pl_module)
        if self._log.due.at_epoch_end(trainer.current_epoch):
            self._measure_once(trainer, pl_module, logger_step(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if the end of the fit, or a checkpoint written since the last step, is due."""
        self._begin_behind_the_last_batch(trainer, pl_module)
        self._measure_last(trainer, pl_module, self._log.due.at_fit_end(logger_step(trainer), last_epoch(trainer)))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if `ModelCheckpoint` wrote its last checkpoint after this callback's `on_train_end`."""
        if self._begin_behind_the_last_batch(trainer, pl_module):  # there was no `on_train_end`
            self.on_train_end(trainer, pl_module)
        elif self._log.due.at_checkpoint(logger_step(trainer)):
            self._measure_last(trainer, pl_module, True)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the Trainer as it was."""
        if stage == "fit":
            self._leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the Trainer as it was, and draw what was measured; the numbers are already reported."""
        self._leave()
        try:
            self._draw_last(trainer)
        except Exception as error:  # which must not take the place of the one that ends the fit
            self.say.warn(f"could not draw what it has measured: {error}")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on where this one stopped, but for what lies in files beside the run."""
        return self._log.state_dict() if self._log.begun and not self._loaded else self._loaded

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what an earlier run left, until the next batch that is trained on."""
        if self._stage == "fit":  # validation restores callbacks, too
            self._loaded, self._fit.started = state_dict, False
            self._idle_batches = 0

    def _reset(self) -> None:
        """Forget every measurement: a new run begins."""
        self._log = RunLog((self.schedule,) if isinstance(self.schedule, Schedule) else tuple(self.schedule), self.say)
        self.carried: dict[str, Any] = {}
        self._fit = Fit()

    def _begin(self, trainer: Any, module: Any, step: int) -> bool:
        """At the first batch of a fit: remember the initialisation, draw the data, try one micro-batch."""
        if self._fit.started:
            return not self._fit.failed
        if step == 0 or self._loaded or self._fitted_by() is not trainer:
            written = self._log.due.checkpoint_written
            self._reset()
            self._log.due.checkpoint_written = written
        self._fitted_by = weakref.ref(trainer)
        self._fit.begin(trainer)
        self._last_run.begins(self._log, self._fit)
        with self._guarded(trainer):
            with self._fit.processes.together(), naming(type(self).__name__):
                self._log.begin(self._fit.processes)
                if self._loaded and step > 0:
                    checkpoint = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
                    self._log.take_up(self._loaded, checkpoint, self._fit.processes)
                    self._fit.undrawn = not worth_redrawing(len(self.history))
                    self._fit.flags_unlogged = bool(self._log.record.risen)
                self._loaded = {}
                if self.needs_init_state:
                    self._log.find_initial(self.init_state, module, step, captured(Probe.among(trainer)))
                if trainer.is_global_zero and not trainer.fast_dev_run:
                    at_once = bool(trainer.loggers or trainer.checkpoint_callbacks)
                    self._log.open(run_directory(trainer), self.name, at_once)
                how = (self.num_samples, self.micro_batch_size, self.seed, self._log.drawn, self.say)
                self._fit.draw(trainer, self._sources(trainer), *how)
                self._fit.suit(partial(self._view, trainer, module, step), self.say, self._alone(module))
            warn_of_stale_values(trainer, self.name, self._log.due.schedules, step, self.say)
            self._measured(trainer, module, step, self._dry_run)
            with self._fit.processes.together():
                self._fit.settings = settings_of(self, self._fit.data, trainer)
                if trainer.is_global_zero:
                    record_settings(trainer.loggers, self.name, self._fit.settings)
            self._fit.failed = False
        self._log.due.plan(step)
        return not self._fit.failed

    def _begin_behind_the_last_batch(self, trainer: Any, module: Any) -> bool:
        """Begin if an earlier run was killed so late, or had even ended, that no batch is left to train on."""
        return bool(self._loaded) and not self._fit.started and self._begin(trainer, module, logger_step(trainer))

    def _sources(self, trainer: Any) -> Sequence[DataSource]:
        return self.data if isinstance(self.data, (list, tuple)) else (self.data,)

    def _dry_run(self, view: ModelView) -> None:
        check_parameters(view)
        self.prepare(view)

    def _view(self, trainer: Any, module: nn.Module, step: int, data: ProbeSets) -> ModelView:
        # Each process has running statistics of its own; a checkpoint has those of the first.
        processes = self._fit.processes
        buffers = processes.tensors_from_first(dict(module.named_buffers())) if processes.size > 1 else None
        groups = optimizer_groups(trainer.optimizers, module)
        known = (data, self.seed, self._log.initial, groups, step, trainer, processes, self._fit.trials)
        return ModelView(Twin(module, buffers), self.objective, *known)

    def _measure_once(self, trainer: Any, module: nn.Module, step: int) -> None:
        if step == self._log.due.last_step or self._fit.failed or not self._fit.started:
            return
        start = time.perf_counter()
        with self._guarded(trainer):
            measured = self._measured(trainer, module, step, lambda view: list(self.measure(view)))
            if not measured:  # nothing can be said without what is missing, and what that is was said
                self._log.due.done(step)
                return
            with self._fit.processes.together():
                results = self._fit.processes.from_first(named(self.name, measured))
                seconds = time.perf_counter() - start
                self._fit.seconds += seconds
                extra = {f"{self.name}/seconds": seconds, "probes/overhead": share_of_time(Probe.among(trainer))}
                flags = self._log.add(step, trainer.current_epoch, results, extra)
                scalars = {key: value for key, value in self.history[-1].items() if key not in ("step", "epoch")}
                drawn = self.pictures() if worth_redrawing(len(self.history)) else ()
                self._fit.undrawn = not drawn
                table = flag_table(Probe.among(trainer), len(flags))
                self._fit.flags_unlogged = bool(flags) and not table
                explaining = {f"{self.name}/seconds", *details(results.values())}
                event = Event(step, self.name, scalars, flags, drawn, self.summary, table, explaining)
                announce(trainer, event, self.on_flag)
                self._fit.seconds += time.perf_counter() - start - seconds
        self._log.due.done(step)  # also if it has failed, and only a warning was wanted

    def _measured(self, trainer: Any, module: nn.Module, step: int, compute: Callable[[ModelView], T]) -> T:
        def compute_anew(view: ModelView) -> T:
            self.carried = dict(self._log.carried)  # a try that failed has left its own in some processes only
            return compute(view)

        look, alone = partial(self._view, trainer, module, step), self._alone(module, step)
        measured = self._fit.measure(compute_anew, look, self.divisible, self.say, alone, self._dry_run)
        self._log.carried, self._log.drawn = self.carried, self._fit.drawn
        return measured

    def _measure_last(self, trainer: Any, module: nn.Module, due: bool) -> None:
        if due:
            self._measure_once(trainer, module, logger_step(trainer))
        with self._guarded(trainer), self._fit.processes.together():
            self._draw_last(trainer)

    def _alone(self, module: nn.Module, step: int | None = None) -> Alone:
        by_name, alone = naming(type(self).__name__, step), replaying(module, keep=self.on_error == "warn")
        return lambda run: by_name(alone(run))

    def _draw_last(self, trainer: Any) -> None:
        drawn = self.pictures() if self._fit.undrawn else ()
        table = risen(Probe.among(trainer)) if self._fit.flags_unlogged else []
        if (drawn or table) and trainer.is_global_zero:
            last = int(self.history[-1]["step"])
            report(trainer.loggers, Event(last, self.name, pictures=drawn, summary=self.summary, risen=table))
        self._fit.undrawn = self._fit.flags_unlogged = False

    def _leave(self) -> None:
        self._log.close()
        self._fit.samples = None
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _notice_checkpoint(self) -> None:
        self._log.due.checkpoint_written = True
        self._idle_batches = 0

    def _guarded(self, trainer: Any) -> AbstractContextManager[None]:
        return guarded(trainer, self.name, self.on_error, self.say)


def _nobody() -> None:
    """No Trainer yet."""
