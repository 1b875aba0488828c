"""The same probes over the saved checkpoints of a finished run, as if they had been attached to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch.utils.data import DataLoader, Dataset

from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.kept import Kept
from lightning_probes.probing.run.progress import check_names
from lightning_probes.probing.run.replay import ReplayRun
from lightning_probes.probing.run.saved import Checkpoints, found, in_order, read
from lightning_probes.probing.run.settings import settings_of
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.trainer import TrainerRun

__all__ = ["replay"]

_NAMES = {"train", "val"}
# Hooks of a module in whose place nothing happens: no training ends, and there is nothing to save.
_ENDS: dict[str, Any] = {"configure_callbacks": list, "on_train_end": lambda: None, "on_fit_end": lambda: None}


def replay(
    probes: Sequence[Probe],
    module: LightningModule,
    checkpoints: Checkpoints,
    data: Any,
    logger: Any = None,
    *,
    trainer: Trainer | None = None,
    directory: str | PathLike[str] | None = None,
    keep: bool = True,
) -> None:
    """Measure at each saved checkpoint, in the order of its steps; `probe.history` and the loggers have the results.

    A number is what the probe would have measured in the run at that step: to rounding, or within its residual for an
    iterative estimate. Each probe measures at every checkpoint, whatever its schedule. The weights are those that the
    checkpoint holds, averaged ones included. What a checkpoint lacks, such as the optimizer's state, is absent from the
    results, and that is said once.

    A replay that was killed goes on where it stopped. A damaged checkpoint is reported and passed over. Checkpoints are
    loaded with `weights_only=True`, so that no code in them is run.

    Args:
        probes: The probes.
        module: A module made as the one that was trained. Its weights are put back in the end.
        checkpoints: Paths, a pattern such as `"runs/demo/checkpoints/*.ckpt"`, or a folder. For a probe that compares
            with the initialisation, one of them is that of step 0, or the probe has `init_state`.
        data: What the run was trained on: a DataLoader, a Dataset, a LightningDataModule, or a dict of them such as
            `{"train": loader, "val": val_loader}`; the module itself, if it has its own `train_dataloader`.
        logger: A logger or several, as for a Trainer. A new one: what it has at these steps already may be replaced.
        trainer: A Trainer with the `precision`, `gradient_clip_val`, devices and so on that the run had; its callbacks
            are not called. None takes one process and no clipping.
        directory: Where to keep what was measured; by default the folder `replay` beside the checkpoints.
        keep: Whether to keep it; False measures every checkpoint again each time.

    Raises:
        ValueError: If there are no checkpoints, or they belong to another module or may run code.
        MisconfigurationException: If there are no probes, or two of one name.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_probes import FisherTrace
        >>> replay([FisherTrace()], BoringModel(), "runs/demo/checkpoints/*.ckpt", BoringModel().train_dataloader())
        Traceback (most recent call last):
        ValueError: checkpoints='runs/demo/checkpoints/*.ckpt' names no file: ...
    """
    paths = found(checkpoints)
    folder = paths[0].parent / "replay" if directory is None else Path(directory).absolute()
    if not probes or not all(isinstance(each, Probe) for each in probes):
        raise MisconfigurationException(
            "replay measures with probes, of which there are none here, or not only: pass probes=[FisherTrace(), ...] "
            "(monitors and interventions need training)"
        )
    check_names([probe.name for probe in probes])
    if trainer is None:
        trainer = Trainer(
            devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        )
    if logger is not None:
        trainer.loggers = list(logger) if isinstance(logger, (list, tuple)) else [logger]
    replays = _Replays(probes, paths, folder if keep else None)
    with _put_back(module), _alone(trainer, replays):
        trainer.fit(module, **_arguments(data, module))


class _Replays(Callback):
    """Measures at every checkpoint when everything is set up for training, which then ends before its first epoch."""

    def __init__(self, probes: Sequence[Probe], paths: Sequence[Path], folder: Path | None) -> None:
        self._probes, self._paths, self._folder = probes, paths, folder
        self._say = Speaker("replay")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replay.

        Raises:
            StopIteration: By which Lightning's loops end without the hooks of an epoch's end.
        """
        loops = copy.deepcopy(trainer.fit_loop.state_dict())
        try:
            self._replay(trainer, pl_module)
        finally:
            trainer.fit_loop.load_state_dict(loops)
        raise StopIteration

    def _replay(self, trainer: Trainer, module: LightningModule) -> None:
        by_step = in_order(self._paths, self._say)
        if not by_step:
            raise ValueError("none of the checkpoints can be read: pass checkpoints= that are whole")
        kept = {probe.name: self._take_up(probe, by_step, TrainerRun(trainer, module)) for probe in self._probes}
        last = max(by_step)
        for step, path in Tqdm(by_step.items(), desc="Replaying", disable=not trainer.is_global_zero):
            due = [probe for probe in self._probes if step not in kept[probe.name].done]
            saved = read(path, self._say) if due or step == last else None
            if saved is None:
                continue
            runs = {name: ReplayRun(trainer, module, saved, each.folder, self._probes) for name, each in kept.items()}
            self._load(next(iter(runs.values())))
            for probe in self._probes if step == last else due:
                self._work(probe, runs[probe.name], kept[probe.name], path)
            if step == last:
                for probe in self._probes:
                    probe.finish(runs[probe.name])

    def _take_up(self, probe: Probe, by_step: Mapping[int, Path], run: TrainerRun) -> Kept:
        kept = Kept(self._folder, probe.name, settings_of(probe, {}, run))
        if run.is_first:
            kept.read(by_step)
        kept.state, kept.done = run.processes.from_first((kept.state, kept.done))
        probe.resume_from(kept.state)
        return kept

    def _load(self, run: ReplayRun) -> None:
        run.load()
        if not run.has_optimizers:
            self._say.info("checkpoints without optimizer state: what depends on the optimizer is left out")
        if run.has_averages:
            self._say.info("checkpoints with averaged weights: these are measured, not those that were trained on")

    def _work(self, probe: Probe, run: ReplayRun, kept: Kept, path: Path) -> None:
        if not probe.begin(run) or run.step in kept.done:
            return
        if run.is_first:
            kept.begin(run.step, path)
            kept.write(probe.progress.log)
        probe.work(run)
        if run.is_first:
            kept.write(probe.progress.log)


def _arguments(data: Any, module: LightningModule) -> dict[str, Any]:
    """The data as arguments of `Trainer.fit`."""
    if data is module:
        return {}
    if isinstance(data, LightningDataModule):
        return {"datamodule": data}
    named = data if isinstance(data, Mapping) and data.keys() <= _NAMES else {"train": data}
    if named.get("train") is None:
        raise MisconfigurationException(
            'replay needs the data that the run was trained on: pass data= that has it, such as {"train": loader}'
        )
    return {f"{name}_dataloaders": _loader(source) for name, source in named.items()}


def _loader(source: Any) -> Any:
    return DataLoader(source, batch_size=64) if isinstance(source, Dataset) else source


@contextmanager
def _put_back(module: LightningModule) -> Iterator[None]:
    """Leave the module as it was, but for the device that it is on. Meanwhile it does not note the end of training."""
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
def _alone(trainer: Trainer, callback: Callback) -> Iterator[None]:
    """Have a Trainer with one callback, which validates nothing."""
    own = {"callbacks": [callback], "num_sanity_val_steps": 0}
    before = {name: getattr(trainer, name) for name in own}
    vars(trainer).update(own)
    try:
        yield
    finally:
        vars(trainer).update(before)
