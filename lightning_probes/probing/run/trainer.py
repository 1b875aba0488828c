"""A fit, as a `Run`: everything that callbacks read from a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_probes.probing.data.drawing import DataSources
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.measurements import Measurements
from lightning_probes.probing.run.optimizers import OptimizerGroup, Stepping, optimizer_groups, stepping
from lightning_probes.probing.run.progress import Progress
from lightning_probes.probing.run.progress_bar import shown_in_bar
from lightning_probes.probing.run.sources import find_sources, has_loader, overfit_samples
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.stale_values import warn_of_stale_values
from lightning_probes.probing.run.timers import clocks_stopped
from lightning_probes.probing.schedules import Schedule

T = TypeVar("T")
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")


def check_strategy(trainer: Any) -> None:
    """Check that every process holds the whole model.

    Raises:
        MisconfigurationException: If the strategy shards parameters; the message names strategies that work.
    """
    strategy = type(trainer.strategy)
    if any(base.__name__ in _SHARDED for base in strategy.__mro__):
        raise MisconfigurationException(
            f"probes need the whole model in every process, and {strategy.__name__} shards it: use "
            "Trainer(strategy='ddp') or a single device"
        )


def logger_step(trainer: Any) -> int:
    """The step that Lightning passes to loggers, so that curves of probes and of training share an axis.

    Lightning does not make it public. With several optimizers it differs from `trainer.global_step`.
    """
    try:
        loop = trainer.fit_loop.epoch_loop
        step: int = loop._batches_that_stepped
    except AttributeError:
        return int(trainer.global_step)
    # Lightning counts a batch when its last hook has run. A checkpoint that is written before lists the batch as
    # processed, but not as counted. If a run is resumed from there and has no batch left, Lightning never counts it.
    progress = getattr(getattr(loop, "batch_progress", None), "total", None)
    uncounted = progress is not None and progress.processed > progress.completed and not loop._should_accumulate()
    return step + uncounted


def run_directory(trainer: Any) -> Path:
    """The folder for a run's probe files: `probes`, by default beside the `checkpoints` of Lightning.

    It depends on the first logger, which only the first process may ask.
    """
    logger = next(iter(trainer.loggers), None)
    places = (getattr(logger, "save_dir", None), trainer.default_root_dir, Path.cwd())
    root = Path(next(place for place in places if place and "://" not in str(place))).absolute()  # not in a cloud
    if logger is None:
        return root / "probes"
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return root / str(logger.name) / version / "probes"


def _kept_by(callback: Any) -> float:
    most = getattr(callback, "save_top_k", -1)
    return float("inf") if most == -1 else most + bool(getattr(callback, "save_last", None))


class TrainerRun:
    """A fit at the moment of a hook; see `Run`.

    Args:
        trainer: The Trainer.
        module: The user's module.
    """

    is_single = False
    is_training = True

    def __init__(self, trainer: Any, module: nn.Module) -> None:
        self._trainer = trainer
        self.module = module

    @cached_property
    def step(self) -> int:
        """The logger's step."""
        return logger_step(self._trainer)

    @cached_property
    def epoch(self) -> int:
        """The present epoch."""
        return int(self._trainer.current_epoch)

    @property
    def last_epoch(self) -> int:
        """The last epoch that has begun."""
        return int(self._trainer.fit_loop.epoch_progress.current.started) - 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank zero."""
        return bool(self._trainer.is_global_zero)

    @property
    def owner(self) -> object:
        """The Trainer."""
        return self._trainer

    @property
    def precision(self) -> str:
        """The Trainer's `precision`."""
        return str(self._trainer.precision)

    @property
    def planned_steps(self) -> float:
        """What the Trainer's limits of steps and epochs allow, whichever comes first."""
        return float(self._trainer.estimated_stepping_batches)

    @property
    def gradient_clip(self) -> float | None:
        """The norm to which the Trainer clips gradients; None if it clips by value or not at all."""
        by_norm = self._trainer.gradient_clip_algorithm in (None, "norm")
        return (self._trainer.gradient_clip_val or None) if by_norm else None

    @cached_property
    def processes(self) -> Processes:
        """The Trainer's processes."""
        return Processes(self._trainer.global_rank, self._trainer.world_size, self._trainer.strategy.root_device)

    def once_a_node(self, make: Callable[[], T]) -> T:
        """What the first process of each node makes, in every process of that node."""
        trainer = self._trainer
        made = make() if trainer.local_rank == 0 else None
        return next(
            each
            for node, each in self.processes.everyone((trainer.node_rank, made))
            if node == trainer.node_rank and each is not None
        )

    @property
    def optimizers(self) -> Sequence[OptimizerGroup]:
        """The parameter groups of the Trainer's optimizers."""
        return optimizer_groups(self._trainer.optimizers, self.module)

    def stepping(self, optimizer: Optimizer) -> Stepping:
        """See `Stepping`."""
        trainer = self._trainer
        scaler, clips = getattr(trainer.precision_plugin, "scaler", None), bool(trainer.gradient_clip_val)
        return stepping(optimizer, trainer.optimizers, self.module, scaler, clips)

    @property
    def loggers(self) -> Sequence[Any]:
        """The Trainer's loggers."""
        loggers: Sequence[Any] = self._trainer.loggers
        return loggers

    @property
    def callbacks(self) -> list[Measurements]:
        """The probes, monitors and interventions among the Trainer's callbacks."""
        return [callback for callback in self._trainer.callbacks if isinstance(callback, Measurements)]

    @property
    def siblings(self) -> Sequence[Progress]:
        """The progress of each of these callbacks."""
        return [callback.progress for callback in self.callbacks]

    @property
    def files(self) -> Path | None:
        """See `run_directory`; None with `fast_dev_run`."""
        return None if self.is_dry else run_directory(self._trainer)

    @property
    def is_dry(self) -> bool:
        """Whether this is a `fast_dev_run`, which leaves nothing behind."""
        return bool(self._trainer.fast_dev_run)

    @property
    def folder(self) -> Path:
        """The Trainer's `default_root_dir`."""
        return Path(self._trainer.default_root_dir)

    @property
    def writes_at_once(self) -> bool:
        """Whether the run writes other files too: those of loggers or checkpoints."""
        return bool(self._trainer.loggers or self._trainer.checkpoint_callbacks)

    @property
    def checkpoint(self) -> Path | None:
        """The Trainer's `ckpt_path`."""
        path = self._trainer.ckpt_path
        return None if path is None else Path(path)

    @property
    def saved(self) -> Sequence[Path]:
        """What is in the folders of the Trainer's `ModelCheckpoint`s."""
        folders = [getattr(callback, "dirpath", None) for callback in self._trainer.checkpoint_callbacks]
        return [path for folder in dict.fromkeys(folders) if folder for path in sorted(Path(folder).glob("*.ckpt"))]

    @property
    def keeps(self) -> float:
        """What the Trainer's `ModelCheckpoint`s keep together; no limit is known of other callbacks."""
        return sum(_kept_by(callback) for callback in self._trainer.checkpoint_callbacks)

    @property
    def sample_limit(self) -> int | None:
        """See `overfit_samples`."""
        return overfit_samples(self._trainer)

    @property
    def should_stop(self) -> bool:
        """Whether the fit was asked to end."""
        return bool(self._trainer.should_stop)

    def sources(self, asked: DataSources) -> dict[str, tuple[Any, str]]:
        """See `find_sources`."""
        return find_sources(self._trainer, asked)

    def has_data(self, name: str) -> bool:
        """Whether the Trainer has data called "train" or "val"."""
        return has_loader(self._trainer, name)

    def computing(self) -> AbstractContextManager[Any]:
        """The context of the Trainer's precision, without autocast, because a probe would measure its rounding."""
        plugin = self._trainer.precision_plugin
        if "mixed" in str(plugin.precision):
            return nullcontext()
        context: AbstractContextManager[Any] = plugin.forward_context()
        return context

    def convert(self, batch: Any) -> Any:
        """The batch in the Trainer's precision."""
        return self._trainer.precision_plugin.convert_input(batch)

    def waiting(self, info: Callable[[str], None]) -> AbstractContextManager[None]:
        """Stop the Trainer's clocks meanwhile."""
        return clocks_stopped(self._trainer, info)

    def progressing(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """In the Trainer's progress bar, if it has one."""
        return shown_in_bar(self._trainer.progress_bar_callback, what, total)

    def publish(self, scalars: Mapping[str, float]) -> None:
        """Put the numbers into `trainer.callback_metrics`."""
        self._trainer.callback_metrics.update({key: torch.tensor(value) for key, value in scalars.items()})

    def loss_of(self, outputs: Any) -> Tensor | None:
        """The loss that `training_step` returned, read from the `outputs` of a hook."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return None
        # Lightning divides the loss by the number of batches over which gradients are accumulated.
        automatic = getattr(self.module, "automatic_optimization", True)
        return loss.detach() * (self._trainer.accumulate_grad_batches if automatic else 1)

    def stop(self) -> bool:
        """Set `trainer.should_stop`. Returns whether it was not set before."""
        stops_now, self._trainer.should_stop = not self._trainer.should_stop, True
        return stops_now

    def warn_of_stale_values(self, name: str, schedules: Sequence[Schedule], say: Speaker) -> None:
        """See `stale_values`."""
        warn_of_stale_values(self._trainer, name, schedules, self.step, say)
