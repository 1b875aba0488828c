"""A training that goes on after a break exactly as if there had been none: every batch has the same samples.

Lightning restores neither the generators nor the place in a shuffled loader; what differs after a break is then the
training, and not the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from lightning_probes import Probe
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import BATCH, SAMPLES, labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, cnn
from tests.tester import fit


class Repeated(Dataset[Any]):
    """The samples of the first batch, again and again."""

    def __init__(self) -> None:
        self.data = labelled(1, 8, 8)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return self.data[index % BATCH]


class Adaptive(Supervised):
    """With an optimizer that has a memory."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def resumable() -> Fit:
    """A convolutional network with BatchNorm, five steps an epoch."""
    return Fit(Adaptive(cnn()), loader(Repeated(), shuffle=False), loader(labelled(1, 8, 8, seed=1), shuffle=False))


def begin(directory: Path, probes: Sequence[Probe], make: Callable[[], Fit] = resumable) -> Path:
    """Stop in the middle of the second of three epochs, with a checkpoint that nobody has measured after."""
    directory.mkdir(exist_ok=True)
    fit(make, [*probes, saves(directory)], directory, enable_checkpointing=True, max_epochs=3, max_steps=7)
    return directory / "step=7.ckpt"


def go_on(
    directory: Path, checkpoint: Path | None, probes: Sequence[Probe], make: Callable[[], Fit] = resumable
) -> Any:
    every = {"enable_checkpointing": True, "max_epochs": 3, "ckpt_path": checkpoint}
    run = fit(make, [*probes, saves(directory)], directory, **every)
    assert run.trainer.global_step == 15
    return run


def saves(directory: Path) -> ModelCheckpoint:
    return ModelCheckpoint(directory, filename="{step}", every_n_train_steps=7, save_top_k=-1)


def measured(each: Probe) -> list[dict[str, float]]:
    return [{key: v for key, v in row.items() if not key.endswith(("/seconds", "/overhead"))} for row in each.history]
