"""Modules whose `training_step` changes what is around them: data, samplers, callbacks, objects of other owners."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp


def numbered(**arguments: Any) -> DataLoader[Any]:
    """Batches of inputs, targets and the samples' numbers."""
    data = labelled(4)
    return loader(TensorDataset(*data.tensors, torch.arange(len(data))), **arguments)


class HardestFirst(Sampler[int]):
    """Goes through the samples by weights that training sets."""

    def __init__(self, samples: int) -> None:
        self.weights = torch.zeros(samples)

    def __iter__(self) -> Iterator[int]:
        return iter((-self.weights).argsort(stable=True).tolist())

    def __len__(self) -> int:
        return len(self.weights)


class CorrectsLabels(Supervised):
    """Writes what it predicts into its dataset, for the next epoch."""

    def __init__(self) -> None:
        super().__init__(mlp())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        labels = self.trainer.train_dataloader.dataset.tensors[1]
        labels[batch[2]] = self(batch[0]).argmax(1)
        return super().training_step(batch, batch_idx)


class Weighs(Supervised):
    """Tells its sampler how hard each sample was."""

    def __init__(self) -> None:
        super().__init__(mlp())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
        self.trainer.train_dataloader.sampler.weights[batch[2]] = losses.detach()
        return losses.mean()


class Hears(L.Callback):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}


class Tells(Supervised):
    """Tells a callback of its losses."""

    def __init__(self) -> None:
        super().__init__(mlp())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        told = next(each for each in self.trainer.callbacks if isinstance(each, Hears))
        told.losses.append(loss.item())
        return loss


class Owner:
    """Owns something that it gives up in the end."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __del__(self) -> None:
        self.steps.clear()


class Counts(Supervised):
    """Counts its steps in memory that processes share, and in an object with a finaliser; its loss depends on both."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.count, self.owner = multiprocessing.Value("i", 0), Owner()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self.count.get_lock():
            self.count.value += 1
        self.owner.steps.append(batch_idx)
        return super().training_step(batch, batch_idx) * (1 + 0.01 * (self.count.value + len(self.owner.steps)))
