"""Tiny datasets, batches and loaders of many kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

SAMPLES, BATCH = 40, 8


def draws(seed: int = 0) -> torch.Generator:
    """A generator for the data alone, because the global generators belong to training."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=draws(seed))


def classes(inputs: Tensor, number: int = 3) -> Tensor:
    """Labels that depend on the inputs; every class is present."""
    score = inputs.flatten(1).sum(1)
    return score.argsort().argsort() * number // len(score)


def labelled(*shape: int, samples: int = SAMPLES, seed: int = 0) -> TensorDataset:
    inputs = normal(samples, *shape, seed=seed)
    return TensorDataset(inputs, classes(inputs))


def loader(data: Dataset[Any], **arguments: Any) -> DataLoader[Any]:
    return DataLoader(data, **{"batch_size": BATCH, "shuffle": not isinstance(data, IterableDataset), **arguments})


class Mapped(Dataset[Any]):
    """A dataset whose samples are passed through a function."""

    def __init__(self, data: Sequence[Any] | Dataset[Any], function: Callable[..., Any]) -> None:
        self.data = data
        self.function = function

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.function(*self.data[index])


def as_tuple(samples: list[tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """A collate function that returns tuples; the default one returns lists."""
    return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A custom collate function: sequences cut to different lengths, padded to the longest of the batch."""
    inputs, labels = zip(*samples, strict=True)
    return torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True), torch.stack(labels)


def augmented(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Augmentation that draws from every global generator."""
    return x + 0.1 * torch.randn(x.shape) + 0.1 * float(np.random.randn()) + 0.1 * random.random(), y


@dataclass
class Graphs:
    """A batch of graphs, of a class that PyTorch does not know. `to` changes it in place and returns None."""

    nodes: Tensor
    graph_of_node: Tensor
    labels: Tensor

    def to(self, device: torch.device, **_: Any) -> None:
        self.nodes, self.graph_of_node = self.nodes.to(device), self.graph_of_node.to(device)
        self.labels = self.labels.to(device)

    @staticmethod
    def collate(samples: list[tuple[Tensor, Tensor]]) -> Graphs:
        nodes, labels = zip(*samples, strict=True)
        graph_of_node = torch.cat([torch.full((len(part),), index) for index, part in enumerate(nodes)])
        return Graphs(torch.cat(list(nodes)), graph_of_node, torch.stack(labels))


def graphs(samples: int = SAMPLES, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Graphs of 2 to 5 nodes with four features each."""
    generator = draws(seed)
    sizes = torch.randint(2, 6, (samples,), generator=generator).tolist()
    nodes = [torch.randn(size, 4, generator=generator) for size in sizes]
    labels = classes(torch.stack([part.sum(0) for part in nodes]))
    return list(zip(nodes, labels, strict=True))


class Stream(IterableDataset[Any]):
    """An iterable that remembers its position, so that reading ahead would take samples away from training."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        for _ in range(len(self.data)):
            self.place += 1
            yield self.data[(self.place * 7) % len(self.data)]


class DataModule(L.LightningDataModule):
    """A data module with its own loaders, and a transfer hook that changes the batch."""

    def setup(self, stage: str) -> None:
        self.train_data, self.val_data = labelled(4), labelled(4, seed=1)

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.train_data)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.val_data, shuffle=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, *batch[1:]]
