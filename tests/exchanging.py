"""Modules that exchange tensors between processes, and data that each process shards by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import classes, labelled, loader, normal
from lightning_probes.testing.zoo.modules import Supervised


class Contrastive(Supervised):
    """Tells each sample from those of all processes; its `forward` exchanges nothing."""

    def loss_of(self, batch: Any) -> Tensor:
        rows = F.normalize(self(batch[0]), dim=1)
        every = self.all_gather(rows, sync_grads=True).reshape(-1, rows.shape[1])
        return F.cross_entropy(rows @ every.T, torch.arange(len(rows)) + self.global_rank * len(rows))


class Lopsided(Contrastive):
    """Holds a part of its loss constant, in one process only."""

    def loss_of(self, batch: Any) -> Tensor:
        loss, logits = super().loss_of(batch), self(batch[0])
        return loss + (logits.detach() * logits).mean() if self.global_rank == 0 else loss


class Disagreeing(Contrastive):
    """In one process NumPy reads a row of the first layer, so units found there can't be exchanged."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), net))

    def loss_of(self, batch: Any) -> Tensor:
        loss = super().loss_of(batch)
        return loss + float(self.net[0].weight.detach().numpy()[0].sum()) if self.global_rank == 1 else loss


class Centred(Supervised):
    """Subtracts from its logits their mean over all processes."""

    def forward(self, inputs: Any) -> Tensor:
        logits = self.net(inputs)
        every = self.all_gather(logits, sync_grads=True).reshape(-1, logits.shape[1])
        centred: Tensor = logits - every.mean(0)
        return centred


class Reduced(Supervised):
    """Asks the strategy for a mean over all processes, and waits for them."""

    def loss_of(self, batch: Any) -> Tensor:
        logits = self(batch[0])
        mean = self.trainer.strategy.reduce(logits.detach().mean(), reduce_op="mean")
        self.trainer.strategy.barrier()
        return F.cross_entropy(logits, batch[1]) + (logits.mean() - mean).square()


class Shard(IterableDataset[Any]):
    """So many labelled samples in each process."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        length = self.lengths[int(os.environ.get("RANK", 0))]
        inputs = normal(40, 4, seed=1)
        return iter([*zip(inputs, classes(inputs), strict=True)][:length])


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def fit_of(kind: type[Supervised], *shards: int) -> Fit:
    """Training on data that all processes share, validation on shards of these lengths."""
    val = DataLoader(Shard(*shards), 8) if shards else None
    return Fit(kind(net()), loader(labelled(4, samples=96)), val)
