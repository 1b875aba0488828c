"""A training that leaves checkpoints at some of its steps, and others that begin there with another order of data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_probes.probing.run.fit_arguments import fit_arguments
from lightning_probes.probing.run.saved import read
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.trial import FIRST_BATCHES, digest, seed_all, together
from lightning_probes.reporting.wandb.group import finish, join

_MID_EPOCH = "You're resuming from a checkpoint that ended before the epoch ended"


def train_parent(
    trainer: Trainer,
    module: LightningModule,
    data: Any,
    places: Mapping[int, Path],
    seed: int,
    group: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    """Train up to the last of some steps, and save a full checkpoint at each of them.

    Args:
        trainer: A new Trainer.
        module: A new module.
        data: Its data.
        places: Where to save, by step.
        seed: Seeds all generators as training starts.
        group: The group and the name of its W&B run.

    Returns:
        What is known of the training, as values that JSON can hold.

    Raises:
        RuntimeError: If the training ends before one of the steps, or passes it over.
        ValueError: If a checkpoint could not be loaded again without running code in it.
    """
    saves = _SavesAt(places, seed)
    _fit(trainer, module, data, saves, group)
    if missing := [step for step in places if step not in saves.saved]:
        raise RuntimeError(
            f"training ended at step {trainer.global_step}, before step {missing[0]} of spawn_steps: leave it out, or "
            "let make_trainer train longer"
        )
    return saves.facts(trainer)


def train_child(
    trainer: Trainer,
    module: LightningModule,
    data: Any,
    start: Path,
    end: Path,
    seed: int,
    group: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    """Train on from a checkpoint to the end, with the optimizer and the schedule restored, and save the end.

    Args:
        trainer: A new Trainer.
        module: A new module; its weights come from the checkpoint.
        data: Its data.
        start: The checkpoint.
        end: Where to save the end.
        seed: Seeds all generators once the checkpoint is loaded.
        group: The group and the name of its W&B run.

    Returns:
        What is known of the training, as values that JSON can hold.
    """
    follows = _Reseeds(seed)
    with warnings.catch_warnings():  # of an epoch that goes on with another order, which is the purpose here
        warnings.filterwarnings("ignore", _MID_EPOCH)
        _fit(trainer, module, data, follows, group, ckpt_path=str(start))
    _save(trainer, end)
    return follows.facts(trainer)


def _fit(
    trainer: Any, module: LightningModule, data: Any, last: Checkpoint, group: tuple[str, str], **options: Any
) -> None:
    trainer.callbacks.append(last)  # Lightning keeps those that save behind all others
    join(trainer.loggers, *group)
    try:
        trainer.fit(module, **fit_arguments(data), **options)
    finally:
        finish(trainer.loggers)


def _save(trainer: Trainer, path: Path) -> None:
    """Save so that a file with this name is complete."""
    unfinished = path.with_name(f"{path.stem}.part{os.getpid()}")
    trainer.save_checkpoint(unfinished)
    os.replace(unfinished, path)


class _Reseeds(Checkpoint):
    """Seeds the generators as training starts, and remembers which batches come first."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._first: list[str] = []

    def facts(self, trainer: Trainer) -> dict[str, Any]:
        """The step reached, and a hash of the first batches."""
        return {"step": trainer.global_step, "batches": together(self._first)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning restores no generator, so what training draws follows from the seed alone."""
        seed_all(self._seed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch, if it is one of the first."""
        if len(self._first) < FIRST_BATCHES:
            self._first.append(digest(batch))


class _SavesAt(_Reseeds):
    """Saves at some steps, and ends training at the last of them."""

    def __init__(self, places: Mapping[int, Path], seed: int) -> None:
        super().__init__(seed)
        self._places = places
        self._is_saving = False
        self.saved: set[int] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step 0 is the untouched initialisation."""
        super().on_train_start(trainer, pl_module)
        self._reach(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a step has been taken that is to be saved."""
        self._reach(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out where loaders are in their order, so that a child's loader begins with its own."""
        if self._is_saving:
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)

    def _reach(self, trainer: Trainer) -> None:
        step = trainer.global_step
        for passed in self._places:
            if passed < step and passed not in self.saved:
                raise RuntimeError(
                    f"training passes over step {passed} of spawn_steps, because a batch takes more than one optimizer "
                    f"step: choose one such as {step}"
                )
        if step in self._places and step not in self.saved:
            with self._saving():
                _save(trainer, self._places[step])
            read(self._places[step], Speaker("instability"))
            self.saved.add(step)
        trainer.should_stop |= len(self.saved) == len(self._places)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False
