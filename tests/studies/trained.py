"""A small study that other processes can import: BatchNorm, dropout, a schedule, and shuffled data."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes.studies import InstabilityResult, instability

EPOCH, STEPS = 6, 18
SPAWN_STEPS = (0, 4, 12)  # the second lies within an epoch, the third is the end of one


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


class Counts(Callback):
    """Notes each training that starts, and kills its process at some step of the nth."""

    def __init__(self, path: Path, kill: tuple[int, int] | None = None) -> None:
        self.path, self.kill = path, kill

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.ckpt_path} {torch.initial_seed()}\n")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        started = len(self.path.read_text().splitlines())
        if self.kill is not None and (started, trainer.global_step) == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)


class DiesOnce(Callback):
    """Kills its process in a child with seed 2, unless it has done so before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if torch.initial_seed() == 2 and trainer.global_step == STEPS - 2 and not self.path.exists():
            self.path.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{"max_steps": STEPS, "max_epochs": -1, "logger": False, **options}, callbacks=[*callbacks], accelerator="cpu",
        devices=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def make_dying_trainer(path: Path) -> Trainer:
    return make_trainer(DiesOnce(path))


def make_counting_trainer(log: Path, kill: tuple[int, int] | None = None) -> Trainer:
    return make_trainer(Counts(log, kill))


def make_data(seed: int) -> DataLoader[Any]:
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    order = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8, shuffle=True, generator=order)


def make_data_or_die(path: Path, call: int | None, seed: int) -> DataLoader[Any]:
    """Kills the process at a call: data are made for every trial, training and measurement."""
    with path.open("a") as file:
        file.write("made\n")
    if len(path.read_text().splitlines()) == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_data(seed)


MADE: Mapping[str, Any] = {"make_trainer": make_trainer, "make_module": Net, "make_data": make_data}


def study(directory: Path, **options: Any) -> InstabilityResult:
    wanted = {"spawn_steps": SPAWN_STEPS, "connectivity": {"num_samples": 48, "num_alphas": 5}}
    return instability(**{**MADE, **wanted, "directory": directory, **options})


def study_until_killed_between(directory: Path, call: int | None) -> None:
    made = partial(make_data_or_die, directory / "made", call)
    study(directory / "study", make_trainer=partial(make_counting_trainer, directory / "started"), make_data=made)


def study_until_killed(directory: Path, kill: tuple[int, int] | None) -> None:
    study(directory / "study", make_trainer=partial(make_counting_trainer, directory / "started", kill))


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
