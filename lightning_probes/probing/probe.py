"""The base of every probe: a callback that measures on schedule, on a twin, and reports."""

from __future__ import annotations

import copy
import inspect
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_probes.probing.announce import OnFlag, Speaker, announce, plain
from lightning_probes.probing.checkpoints import watch_checkpoints
from lightning_probes.probing.checks import check_parameters
from lightning_probes.probing.data import DataSource, Drawing, ProbeSet
from lightning_probes.probing.init_state import InitStateSource, StateDict, capture_state, load_state
from lightning_probes.probing.objective import LossFn, Objective, PredictFn
from lightning_probes.probing.optimizers import optimizer_groups
from lightning_probes.probing.record import Record, named
from lightning_probes.probing.schedules import Schedule
from lightning_probes.probing.session import (
    check_strategy,
    draw_probe_sets,
    logger_step,
    measuring,
    overfit_samples,
)
from lightning_probes.probing.twin import Twin
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import Event, Panel, Picture, pictures, record_settings, report, worth_redrawing
from lightning_probes.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


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
        if num_samples < 1 or (micro_batch_size is not None and micro_batch_size < 1):
            raise ValueError(
                f"num_samples and micro_batch_size must be at least 1, got {num_samples} and {micro_batch_size}"
            )
        if on_flag not in ("log", "alert", "stop") or on_error not in ("raise", "warn"):
            raise ValueError(
                "on_flag must be 'log', 'alert' or 'stop' and on_error 'raise' or 'warn', "
                f"got {on_flag!r} and {on_error!r}"
            )
        if not name or seed < 0:
            raise ValueError(f"name must not be empty and seed not negative, got name={name!r} and seed={seed}")
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
        self._schedules = (schedule,) if isinstance(schedule, Schedule) else tuple(schedule)
        self.say = Speaker(f"{type(self).__name__} {name!r}")
        self._unwatch: Callable[[], None] | None = None
        self._seconds = self._fit_start = 0.0
        self._next_step = -1.0
        self._last_step: int | None = None
        self._last_checkpoint: int | None = None
        self._data: dict[str, ProbeSet] = {}
        self._attached = False
        self._reset()

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

    def summarize(self) -> dict[str, float]:
        """Running extremes of `history` by relative key: for the run's summary, never for its history."""
        return {}

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry an event: step, epoch and every finite scalar under its full key."""
        return self._record.history

    @property
    def results(self) -> dict[str, Result]:
        """The latest result under each full key."""
        return self._record.results

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
        self._attached = True
        if stage != "fit":
            return
        check_strategy(trainer)
        names = [callback.name for callback in trainer.callbacks if isinstance(callback, Probe)]
        if names.count(self.name) > 1:
            raise MisconfigurationException(f"two probes are called {self.name!r}: give one of them another name=")
        self._started = False
        self._next_step = -1.0
        self._unwatch = watch_checkpoints(trainer, self._notice_checkpoint)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure if a step or a checkpoint is due."""
        step = logger_step(trainer)
        if step < self._next_step and not self._checkpoint_written:
            return
        if not self._begin(trainer, pl_module, step):
            return
        checkpoint_due = self._checkpoint_due(step)  # asked first, for it forgets the checkpoint
        if step >= self._next_step or checkpoint_due:
            self._measure_once(trainer, pl_module, step)
        self._next_step = self._due_after(step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if the end of an epoch is due."""
        if any(schedule.at_epoch_end(trainer.current_epoch) for schedule in self._schedules):
            self._measure_once(trainer, pl_module, logger_step(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if the end of the fit, or a checkpoint written since the last step, is due."""
        step = logger_step(trainer)
        if self._checkpoint_due(step) or any(schedule.at_fit_end() for schedule in self._schedules):
            self._measure_once(trainer, pl_module, step)
        self._draw_last(trainer, step)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure if `ModelCheckpoint` wrote its last checkpoint after this callback's `on_train_end`."""
        if self._checkpoint_due(logger_step(trainer)):
            self._measure_once(trainer, pl_module, logger_step(trainer))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the Trainer as it was."""
        if stage == "fit":
            self._stop_watching()
            self._data = {}

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the Trainer as it was; what was measured is already reported."""
        self._stop_watching()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on where this one stopped."""
        return {"history": self.history, "last_step": self._last_step, "last_checkpoint": self._last_checkpoint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up an earlier run's history."""
        self._record.history[:] = state_dict["history"]
        self._last_step, self._last_checkpoint = state_dict["last_step"], state_dict["last_checkpoint"]

    def _reset(self) -> None:
        """Forget every measurement: a new run begins. A probe that keeps something for its next one adds that."""
        self._record = Record()
        self._last_step = self._last_checkpoint = None
        self._checkpoint_written = False
        self._started = False
        self._failed = False
        self._undrawn = False
        self._next_step = -1.0
        self._initial: StateDict | None = None
        self._data = {}

    def _begin(self, trainer: Any, module: Any, step: int) -> bool:
        """At the first batch of a fit: remember the initialisation, draw the data, try one micro-batch."""
        if self._started:
            return not self._failed
        if step == 0:
            self._reset()
        self._started, self._failed, self._seconds, self._fit_start = True, True, 0.0, time.perf_counter()
        with self._guarded(trainer), measuring():
            if self.needs_init_state:
                self._find_initial_state(trainer, module, step)
            drawing = Drawing(
                self.num_samples, self.micro_batch_size, self.seed, trainer.global_rank, trainer.world_size,
                limit=overfit_samples(trainer),
            )  # fmt: skip
            self._data = draw_probe_sets(trainer, self._sources(trainer), drawing)
            for split, probe_set in self._data.items():
                if (found := probe_set.num_samples) < self.num_samples:
                    self.say.info(f"{split} data has {found} samples of the {self.num_samples} asked for")
            self._dry_run(self._view(trainer, module, step))
            if trainer.is_global_zero:
                record_settings(trainer.loggers, self.name, self._settings(trainer))
            self._failed = False
        self._next_step = self._due_after(step - 1 if self._last_step is None else self._last_step)
        return not self._failed

    def _sources(self, trainer: Any) -> Sequence[DataSource]:
        return self.data if isinstance(self.data, (list, tuple)) else (self.data,)

    def _find_initial_state(self, trainer: Any, module: nn.Module, step: int) -> None:
        if self.init_state is not None:
            self._initial = load_state(self.init_state, module)
        elif step == 0:
            others = (probe for probe in trainer.callbacks if isinstance(probe, Probe) and probe._started)
            captured = (other._initial for other in others if other.init_state is None)  # one copy serves all
            self._initial = next((state for state in captured if state is not None), None) or capture_state(module)
        elif self._initial is None:
            self.say.info("the initialisation of this run is not known: pass init_state= to compare with it")

    def _dry_run(self, view: ModelView) -> None:
        try:
            check_parameters(view)
            self.check(view)
        except MisconfigurationException as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error
        except (ValueError, TypeError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from error

    def _view(self, trainer: Any, module: nn.Module, step: int) -> ModelView:
        groups = optimizer_groups(trainer.optimizers, module)
        return ModelView(Twin(module), self.objective, self._data, self.seed, self._initial, groups, step, trainer)

    def _measure_once(self, trainer: Any, module: nn.Module, step: int) -> None:
        if step == self._last_step or self._failed or not self._started:
            return
        self._last_step = step
        start = time.perf_counter()
        with self._guarded(trainer), measuring():
            measured = list(self.measure(self._view(trainer, module, step)))
            if not measured:  # nothing can be said without what is missing, and what that is was said
                return
            results = named(self.name, measured)
            seconds = time.perf_counter() - start
            self._seconds += seconds
            extra = {f"{self.name}/seconds": seconds, "probes/overhead": self._overhead(trainer)}
            flags = self._record.add(step, trainer.current_epoch, results, extra)
            scalars = {key: value for key, value in self.history[-1].items() if key not in ("step", "epoch")}
            drawn = self._pictures() if worth_redrawing(len(self.history)) else ()
            self._undrawn = not drawn
            announce(trainer, Event(step, self.name, scalars, flags, drawn, self.summary), self.on_flag)

    def _draw_last(self, trainer: Any, step: int) -> None:
        if self._undrawn and trainer.is_global_zero:
            report(trainer.loggers, Event(step, self.name, pictures=self._pictures(), summary=self.summary))
        self._undrawn = False

    def _pictures(self) -> tuple[Picture, ...]:
        return pictures(self.panels, self.name, self.history, self._record.trail)

    def _stop_watching(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _notice_checkpoint(self) -> None:
        self._checkpoint_written = True

    def _checkpoint_due(self, step: int) -> bool:
        written, self._checkpoint_written = self._checkpoint_written, False
        due = written and any(schedule.at_checkpoint(step, self._last_checkpoint) for schedule in self._schedules)
        if due:
            self._last_checkpoint = step
        return due

    def _due_after(self, step: int) -> float:
        steps = (schedule.next_step(step) for schedule in self._schedules)
        return min((step for step in steps if step is not None), default=math.inf)

    @contextmanager
    def _guarded(self, trainer: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            self.say.warn(f"failed and was left out: {type(error).__name__}: {error}")
            if trainer.is_global_zero:
                report(trainer.loggers, Event(logger_step(trainer), self.name, {f"{self.name}/error": 1.0}))

    def _overhead(self, trainer: Any) -> float:
        """Share of the fit's time that all its probes have taken so far."""
        probes = [callback for callback in trainer.callbacks if isinstance(callback, Probe)]
        spent = sum(probe._seconds for probe in probes)
        elapsed = time.perf_counter() - min(probe._fit_start for probe in probes if probe._started)
        if spent > elapsed / 4 and elapsed > 60 and self is probes[0]:
            self.say.info("probes take over a quarter of the fit: set schedule= or num_samples= to measure less")
        return spent / elapsed

    def _settings(self, trainer: Any) -> dict[str, Any]:
        """What the run's config records: every argument, what was drawn for it, and under which precision."""
        arguments = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        given = {name: getattr(self, name, getattr(self.objective, name, None)) for name in arguments}
        drawn = {
            f"{split}_{what}": value
            for split, probe_set in self._data.items()
            for what, value in (("samples", probe_set.num_samples), ("micro_batch_size", max(probe_set.sizes)))
        }
        own = {
            "probe": type(self).__name__,
            "precision": str(trainer.precision),
            "version": version("lightning-probes"),
        }
        return plain({"batch_norm": "eval", **given, **drawn, **own})
