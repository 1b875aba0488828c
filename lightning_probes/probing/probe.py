"""The base of every probe: a callback that measures on schedule, on a twin, and reports."""

from __future__ import annotations

import copy
import math
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_probes.probing.announce import OnFlag, Speaker, announce
from lightning_probes.probing.checkpoints import watch_checkpoints
from lightning_probes.probing.checks import check_arguments, check_parameters
from lightning_probes.probing.data import DataSource, Drawing
from lightning_probes.probing.init_state import InitStateSource, capture_state, load_state
from lightning_probes.probing.memory import ProbeSets, Samples, attempt
from lightning_probes.probing.objective import LossFn, Objective, PredictFn
from lightning_probes.probing.optimizers import optimizer_groups
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.record import named
from lightning_probes.probing.run_log import RunLog
from lightning_probes.probing.schedules import Schedule
from lightning_probes.probing.session import (
    check_strategy,
    draw_probe_sets,
    logger_step,
    measuring,
    overfit_samples,
    run_directory,
)
from lightning_probes.probing.settings import settings_of
from lightning_probes.probing.siblings import captured, check_names, risen, share_of_time
from lightning_probes.probing.twin import Twin
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import (
    Event,
    Panel,
    Picture,
    pictures,
    record_settings,
    report,
    worth_redrawing,
    write_often,
)
from lightning_probes.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

T = TypeVar("T")


class Probe(Callback):
    """A measurement that looks at a training run from the inside and leaves it bit-identical.

    A new probe overrides `measure`, and `check` for what it needs to know before training time is spent. It never
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
        on_error: "raise" stops training when the probe fails; "warn" says so once and goes on without the measurement.
        seed: Decides the samples drawn and every random number of the probe.

    Raises:
        ValueError: If an argument is out of range.
    """

    panels: ClassVar[tuple[Panel, ...]] = ()
    needs_init_state: ClassVar[bool] = False

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
        on_error: Literal["raise", "warn"] = "raise",
        seed: int = 0,
    ) -> None:
        check_arguments(name, num_samples, micro_batch_size, on_flag, on_error, seed)
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
        self._samples: Samples | None = None
        self._loaded: dict[str, Any] = {}
        self._seconds = self._fit_start = 0.0
        self._attached = False
        self._stage = ""
        write_often()
        self._fitted_by: Callable[[], Any] = _nobody
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_fitted_by": _nobody}  # weak references can't be sent to other processes

    @abstractmethod
    def measure(self, view: ModelView) -> Iterable[Result]:
        """Measure once.

        Args:
            view: The model at this moment, and the probe's data.

        Returns:
            Results under relative keys, e.g. `Scalar("trace", ...)`.
        """

    def check(self, view: ModelView) -> None:
        """Raise, before the first optimizer step, for what would fail at the first measurement."""

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether smaller micro-batches give the same results, so that they may be halved where memory lacks.

        Args:
            pairs: A view of a few samples in micro-batches of two.
            singles: A view of the same samples one by one.
        """
        return False

    def summarize(self) -> dict[str, float]:
        """Running extremes of `history` by relative key: for the run's summary, never for its history."""
        return {}

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry an event: step, epoch and every finite scalar under its full key."""
        return self._log.record.history

    @property
    def results(self) -> dict[str, Result]:
        """The latest result under each full key."""
        return self._log.record.results

    @property
    def summary(self) -> dict[str, float]:
        """Running extremes under their full keys."""
        values = {f"{self.name}/{key}": value for key, value in self.summarize().items()}
        return {key: value for key, value in values.items() if math.isfinite(value)}

    def figure(self, key: str | None = None) -> go.Figure:
        """The Plotly figure of one of the probe's panels, by default of the first.

        Raises:
            KeyError: If nothing was measured for that key.
        """
        drawn = {picture.key: picture for picture in self._pictures()}
        if not drawn or (key is not None and key not in drawn):
            raise KeyError(
                f"no picture {key or ''!r}: the probe {self.name!r} has {sorted(drawn) or 'measured nothing'}"
            )
        return drawn[next(iter(drawn)) if key is None else key].figure()

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
        with measuring():
            drawing = Drawing(self.num_samples, self.micro_batch_size, self.seed)
            data = {"train": drawing.draw(loader)}
            source = self.init_state if init_state is None else init_state
            initial = None if source is None else load_state(source, module)
            view = ModelView(Twin(module), self.objective, data, self.seed, initial)
            probe._dry_run(view)
            return named(self.name, probe.measure(view))

    @property
    def state_key(self) -> str:
        """The probe's key in a checkpoint."""
        # A Trainer refuses two equal keys when it is made, in words of its own; `setup` says which argument to set.
        return self.name if self._attached else f"{self.name}@{id(self)}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what can't work, and start to notice checkpoints."""
        self._attached, self._stage = True, stage
        if stage != "fit":
            return
        check_strategy(trainer)
        check_names(_probes(trainer))
        self._started = False
        self._loaded = {}
        self._log.due.checkpoint_written = False
        self._unwatch = watch_checkpoints(trainer, self._notice_checkpoint)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure if a step or a checkpoint is due."""
        step = logger_step(trainer)
        if self._started and not self._log.due.may_be(step):
            return
        if self._begin(trainer, pl_module, step) and self._log.due.at_step(step, trainer.current_epoch):
            self._measure_once(trainer, pl_module, step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if the end of an epoch is due."""
        if self._log.due.at_epoch_end(trainer.current_epoch):
            self._measure_once(trainer, pl_module, logger_step(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if the end of the fit, or a checkpoint written since the last step, is due."""
        step = logger_step(trainer)
        if self._log.due.at_fit_end(step):
            self._measure_once(trainer, pl_module, step)
        with self._guarded(trainer), self._processes.together():
            self._draw_last(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if `ModelCheckpoint` wrote its last checkpoint after this callback's `on_train_end`."""
        if self._log.due.at_checkpoint(logger_step(trainer)):
            self._measure_once(trainer, pl_module, logger_step(trainer))
            with self._guarded(trainer), self._processes.together():
                self._draw_last(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the Trainer as it was."""
        if stage == "fit":
            self._stop_watching()
            self._samples = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the Trainer as it was, and draw what was measured; the numbers are already reported."""
        self._stop_watching()
        self._samples = None
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
            self._loaded, self._started = state_dict, False

    def _reset(self) -> None:
        """Forget every measurement: a new run begins. A probe that keeps something for its next one adds that."""
        self._log = RunLog((self.schedule,) if isinstance(self.schedule, Schedule) else tuple(self.schedule), self.say)
        self._warm: dict[str, Any] = {}  # what a measurement leaves to the next one to start from
        self._samples = None
        self._processes = Processes()
        self._started = False
        self._failed = False
        self._undrawn = False

    def _begin(self, trainer: Any, module: Any, step: int) -> bool:
        """At the first batch of a fit: remember the initialisation, draw the data, try one micro-batch."""
        if self._started:
            return not self._failed
        if step == 0 or self._loaded or self._fitted_by() is not trainer:
            written = self._log.due.checkpoint_written
            self._reset()
            self._log.due.checkpoint_written = written
        self._fitted_by = weakref.ref(trainer)
        self._started, self._failed, self._seconds, self._fit_start = True, True, 0.0, time.perf_counter()
        self._processes = Processes(trainer.global_rank, trainer.world_size, trainer.strategy.root_device)
        with self._guarded(trainer):
            with self._processes.together():
                self._log.begin(self._processes)
                if self._loaded and step > 0:
                    checkpoint = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
                    self._log.take_up(self._loaded, checkpoint, self._processes)
                self._loaded = {}
                if self.needs_init_state:
                    self._find_initial_state(trainer, module, step)
                if trainer.is_global_zero and not trainer.fast_dev_run:
                    at_once = bool(trainer.loggers or trainer.checkpoint_callbacks)
                    self._log.open(run_directory(trainer), self.name, at_once)
                drawing = Drawing(
                    self.num_samples, self.micro_batch_size, self.seed, trainer.global_rank, trainer.world_size,
                    limit=overfit_samples(trainer),
                )  # fmt: skip
                samples = Samples(lambda how: draw_probe_sets(trainer, self._sources(trainer), how), drawing)
                self._samples = samples
                for split, probe_set in samples.sets.items():
                    if (found := probe_set.num_samples) < self.num_samples:
                        self.say.info(f"{split} data has {found} samples of the {self.num_samples} asked for")
            self._attempt(trainer, module, step, self._dry_run)
            with self._processes.together():
                if trainer.is_global_zero:
                    record_settings(trainer.loggers, self.name, settings_of(self, samples.sets, trainer))
            self._failed = False
        self._log.due.plan(step)
        return not self._failed

    def _sources(self, trainer: Any) -> Sequence[DataSource]:
        return self.data if isinstance(self.data, (list, tuple)) else (self.data,)

    def _find_initial_state(self, trainer: Any, module: nn.Module, step: int) -> None:
        if self.init_state is not None:
            self._log.initial = load_state(self.init_state, module)
        elif step == 0:
            self._log.initial = captured(_probes(trainer)) or capture_state(module)
        elif self._log.initial is None:
            self.say.info("the initialisation of this run is not known: pass init_state= to compare with it")

    def _dry_run(self, view: ModelView) -> None:
        try:
            check_parameters(view)
            self.check(view)
        except MisconfigurationException as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error
        except (ValueError, TypeError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from error

    def _view(self, trainer: Any, module: nn.Module, step: int, data: ProbeSets | None = None) -> ModelView:
        groups = optimizer_groups(trainer.optimizers, module)
        # Each process has running statistics of its own; a checkpoint has those of the first.
        several = self._processes.size > 1
        buffers = self._processes.tensors_from_first(dict(module.named_buffers())) if several else None
        if data is None:
            data = {} if self._samples is None else self._samples.sets
        known = (data, self.seed, self._log.initial, groups, step, trainer, self._processes)
        return ModelView(Twin(module, buffers), self.objective, *known)

    def _measure_once(self, trainer: Any, module: nn.Module, step: int) -> None:
        if step == self._log.due.last_step or self._failed or not self._started:
            return
        start = time.perf_counter()
        with self._guarded(trainer):
            measured = self._attempt(trainer, module, step, lambda view: list(self.measure(view)))
            if not measured:  # nothing can be said without what is missing, and what that is was said
                self._log.due.done(step)
                return
            with self._processes.together():
                results = self._processes.from_first(named(self.name, measured))
                seconds = time.perf_counter() - start
                self._seconds += seconds
                extra = {f"{self.name}/seconds": seconds, "probes/overhead": share_of_time(_probes(trainer))}
                flags = self._log.add(step, trainer.current_epoch, results, extra)
                scalars = {key: value for key, value in self.history[-1].items() if key not in ("step", "epoch")}
                drawn = self._pictures() if worth_redrawing(len(self.history)) else ()
                self._undrawn = not drawn
                event = Event(step, self.name, scalars, flags, drawn, self.summary, risen(_probes(trainer)))
                announce(trainer, event, self.on_flag)
        self._log.due.done(step)  # also if it has failed, and only a warning was wanted

    def _attempt(self, trainer: Any, module: nn.Module, step: int, compute: Callable[[ModelView], T]) -> T:
        return attempt(
            lambda: compute(self._view(trainer, module, step)), self._processes,
            halve=lambda failure: self._halve(trainer, module, step, failure),
        )  # fmt: skip

    def _halve(self, trainer: Any, module: nn.Module, step: int, failure: Exception) -> None:
        assert self._samples is not None
        size = self._samples.largest
        if not self._samples.halve(
            lambda pairs, singles: self.divisible(
                self._view(trainer, module, step, pairs), self._view(trainer, module, step, singles)
            )
        ):
            raise RuntimeError(
                f"{type(self).__name__} {self.name!r} ran out of memory on micro-batches of {size} samples, and can't "
                f"halve them without another result: pass a smaller micro_batch_size= ({failure})"
            ) from failure
        self.say.info(f"out of memory: going on with micro-batches of {self._samples.largest} samples")

    def _draw_last(self, trainer: Any) -> None:
        if self._undrawn and trainer.is_global_zero:
            event = Event(int(self.history[-1]["step"]), self.name, pictures=self._pictures(), summary=self.summary)
            report(trainer.loggers, event)
        self._undrawn = False

    def _pictures(self) -> tuple[Picture, ...]:
        return pictures(self.panels, self.name, self.history, self._log.record.trail)

    def _stop_watching(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _notice_checkpoint(self) -> None:
        self._log.due.checkpoint_written = True

    @contextmanager
    def _guarded(self, trainer: Any) -> Iterator[None]:
        try:
            with measuring():
                yield
        except Exception as error:
            self._warm = {}  # of which some processes may have the next, and some the last
            # A bare Exception is how a W&B agent stops a trial that runs in a thread, wherever that is.
            if self.on_error == "raise" or (type(error) is Exception and not error.args):
                raise
            self.say.warn(f"failed and was left out: {type(error).__name__}: {error}")
            if trainer.is_global_zero:
                try:
                    report(trainer.loggers, Event(logger_step(trainer), self.name, {f"{self.name}/error": 1.0}))
                except Exception as other:  # the loggers are what has failed
                    self.say.warn(f"could not log its error: {other}")


def _nobody() -> None:
    """No Trainer yet."""


def _probes(trainer: Any) -> list[Probe]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Probe)]
