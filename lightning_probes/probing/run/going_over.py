"""Measuring at the saved checkpoints of a finished run, with a Trainer that is set up for training."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_probes.probing.origin import names_in
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.kept import Kept
from lightning_probes.probing.run.replay import ReplayRun, Saved
from lightning_probes.probing.run.saved import in_order, read
from lightning_probes.probing.run.settings import settings_of
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.trainer import TrainerRun, check_strategy

# Replacements for hooks of the module: there is no training that ends, and nothing to save.
_ENDS: dict[str, Any] = {"configure_callbacks": list, "on_train_end": lambda: None, "on_fit_end": lambda: None}


def go_over(
    paths: Sequence[Path], probes: Sequence[Any], module: LightningModule, data: Mapping[str, Any],
    folder: Path | None = None, trainer: Trainer | None = None, logger: Any = None,
) -> None:  # fmt: skip
    """Let probes measure at each checkpoint.

    Args:
        paths: The checkpoints, in any order.
        probes: The probes, of class `Probe` (which imports this package, not the other way round).
        module: A module created with the same arguments as the trained one. Its weights are restored at the end.
        data: The run's data, as arguments of `Trainer.fit`.
        folder: The folder that keeps the measurements; None to keep nothing.
        trainer: A Trainer with the settings of the run; None for no clipping, and one process or those of torchrun.
        logger: One logger or several, used instead of the Trainer's.
    """
    if trainer is None:
        trainer = Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **_devices(),
        )  # fmt: skip
    _check_strategy(trainer)
    if logger is not None:
        trainer.loggers = list(logger) if isinstance(logger, (list, tuple)) else [logger]
    with _put_back(module), alone(trainer, _Replays(probes, paths, folder)):
        trainer.fit(module, **data)


class _Replays(Callback):
    """Measures at every checkpoint once everything is set up for training. Training ends before its first epoch."""

    def __init__(self, probes: Sequence[Any], paths: Sequence[Path], folder: Path | None) -> None:
        self._probes, self._paths, self._folder = probes, paths, folder
        self._say = Speaker("replay")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replay.

        Raises:
            StopIteration: Always. It ends Lightning's loops without calling the hooks for the end of an epoch.
        """
        loops = copy.deepcopy(trainer.fit_loop.state_dict())
        try:
            self._replay(trainer, pl_module)
        finally:
            trainer.fit_loop.load_state_dict(loops)
        raise StopIteration

    def _replay(self, trainer: Trainer, module: LightningModule) -> None:
        processes = TrainerRun(trainer, module).processes
        with processes.together():
            by_step = processes.from_first(in_order(self._paths, self._say))
            if not by_step:
                raise ValueError("none of the checkpoints can be read: pass checkpoints= that are complete")
        kept = {probe.name: self._take_up(probe, by_step, TrainerRun(trainer, module)) for probe in self._probes}
        last = max(by_step)
        for step, path in Tqdm(by_step.items(), desc="Replaying", disable=not trainer.is_global_zero):
            due = [probe for probe in self._probes if step not in kept[probe.name].done]
            saved = self._read(path, processes) if due or step == last else None
            if saved is None:
                continue
            runs = {name: ReplayRun(trainer, module, saved, each.folder, self._probes) for name, each in kept.items()}
            self._load(next(iter(runs.values())))
            for probe in self._probes if step == last else due:
                self._work(probe, runs[probe.name], kept[probe.name], path)
            if step == last:
                for probe in self._probes:
                    probe.finish(runs[probe.name])

    def _read(self, path: Path, processes: Processes) -> Saved | None:
        """A checkpoint, in all processes or in none."""
        with processes.together():
            saved = read(path, self._say)
            return None if processes.any(saved is None) else saved

    def _take_up(self, probe: Any, by_step: Mapping[int, Path], run: TrainerRun) -> Kept:
        kept = Kept(self._folder, probe.name, settings_of(probe, {}, run))
        if run.is_first:
            kept.read(by_step)
        kept.state, kept.done = run.processes.from_first((kept.state, kept.done))
        probe.resume_from(kept.state)
        return kept

    def _load(self, run: ReplayRun) -> None:
        run.load()
        if not run.has_optimizers:
            self._say.info("the checkpoint holds no optimizer state: results that depend on the optimizer are left out")
        if run.has_averages:
            self._say.info(
                "the checkpoint holds averaged weights: these are measured, not the weights that the optimizer updated"
            )

    def _work(self, probe: Any, run: ReplayRun, kept: Kept, path: Path) -> None:
        if not probe.begin(run) or run.step in kept.done:
            return
        if run.is_first:
            kept.begin(run.step, path)
            kept.write(probe.progress.log)
        probe.work(run)
        if run.is_first:
            kept.write(probe.progress.log)


def _devices() -> dict[str, Any]:
    """One device, or that of each process if torchrun has started several: alone they would write to the same files."""
    here, nodes = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    return {"devices": here, "num_nodes": nodes}


def _check_strategy(trainer: Trainer) -> None:
    check_strategy(trainer)
    if "_MultiProcessingLauncher" in names_in(type(trainer.strategy.launcher)):
        raise MisconfigurationException(
            "replay leaves its numbers in the processes that measure, and those of 'ddp_spawn', 'ddp_fork' and "
            "'ddp_notebook' end with it: pass trainer=Trainer(strategy='ddp'), or one with devices=1"
        )


@contextmanager
def _put_back(module: LightningModule) -> Iterator[None]:
    """Restore the module on exit, except for its device. Inside the block, the hooks in `_ENDS` do nothing."""
    state = {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}
    trainer = module._trainer
    own = {name: vars(module)[name] for name in _ENDS if name in vars(module)}
    vars(module).update(_ENDS)
    try:
        yield
    finally:
        for name in _ENDS:
            del vars(module)[name]
        vars(module).update(own)
        module.load_state_dict(state)
        module._trainer = trainer


@contextmanager
def alone(trainer: Trainer, callback: Callback) -> Iterator[None]:
    """Give the Trainer only this callback inside the block, and turn off its validation before training."""
    own = {"callbacks": [callback], "num_sanity_val_steps": 0}
    before = {name: getattr(trainer, name) for name in own}
    vars(trainer).update(own)
    try:
        yield
    finally:
        vars(trainer).update(before)
