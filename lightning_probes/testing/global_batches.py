"""Batches of one process that are those of several together, so that its gradients are the mean of theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from lightning_probes.testing.zoo import Fit


def of_all_processes(make: Callable[[], Fit], processes: int) -> Callable[[], Fit]:
    """Makes what `make` makes, with batches that each have the samples of one batch of every process.

    Each process has the samples that Lightning's DistributedSampler gives it.
    """

    def joined() -> Fit:
        made = make()
        return replace(made, train=_joined(made.train, processes))

    return joined


def _joined(loader: DataLoader[Any], processes: int) -> DataLoader[Any]:
    shuffled, seed = isinstance(loader.sampler, RandomSampler), int(os.environ.get("PL_GLOBAL_SEED", 0))
    dataset: Any = loader.dataset
    samplers: list[Any] = [
        DistributedSampler(dataset, processes, rank, shuffle=shuffled, seed=seed) for rank in range(processes)
    ]
    size: Any = loader.batch_size
    shares = [[[*sampler][start : start + size] for start in range(0, len(sampler), size)] for sampler in samplers]
    batches = [[*chain.from_iterable(each)] for each in zip(*shares, strict=True)]
    return DataLoader(dataset, batch_sampler=batches, collate_fn=loader.collate_fn)
