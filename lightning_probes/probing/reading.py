"""Reading samples from a dataset without the dataset noticing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_probes.probing.copying import COPY, Copier, refuse, share
from lightning_probes.probing.seeding import seed_generator, seed_generators
from lightning_probes.probing.snapshot import Snapshot
from lightning_probes.probing.stand_ins import comes_from

# What does not fit is read where it lies: that much data is not the state of a dataset.
_COPIED_BYTES = 2**28
_READ_ONLY = ("pyarrow", "datasets")

Plan = Iterable[tuple[int, Any]]


def read(dataset: Any, collate: Callable[[Any], Any], plan: Plan, seed: int, init: Any = None) -> Iterator[Any]:
    """Read batches from a copy of a map-style dataset, or in a forked process where it can't be copied.

    Each batch is read from the dataset as it is now, with generators (those of the process and the dataset's own)
    seeded by the batch's number: it does not depend on which others are read. Run it inside `isolated_rng`.

    Args:
        dataset: The user's dataset.
        collate: The user's `collate_fn`.
        plan: Number and content of each batch: a list of indices to collate, or one key of a dataset of whole batches.
        seed: The probe's seed.
        init: The loader's `worker_init_fn`, for the forked process.

    Returns:
        The batches, read as they are asked for.

    Raises:
        MisconfigurationException: If the dataset can't be copied and the platform can't fork; names `data`.
    """
    reader = _Reader(dataset, collate, plan, seed)
    try:
        copier = Copier(stand_in=_within_budget(_COPIED_BYTES), otherwise=refuse)
        return iter(replace(reader, dataset=copier(dataset), collate=copier(collate), made=copier.made))
    except Exception as error:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise unreadable(dataset, error) from error
    worker = {"num_workers": 1, "multiprocessing_context": "fork", "worker_init_fn": init}
    return iter(DataLoader(reader, batch_size=None, collate_fn=_as_it_is, generator=torch.Generator(), **worker))


def own_copy(source: Any, *rest: Any) -> Any:
    """A copy of something that gives batches or samples in an order of its own.

    Raises:
        MisconfigurationException: If it can't be copied; names `data`.
    """
    copier = Copier(stand_in=_within_budget(_COPIED_BYTES), otherwise=refuse)
    try:
        return (copier(source), *map(copier, rest)) if rest else copier(source)
    except Exception as error:
        raise unreadable(source, error) from error


def unreadable(source: Any, error: Exception) -> MisconfigurationException:
    """The error for data that can't be read without disturbing training."""
    return MisconfigurationException(
        f"{type(source).__name__} can't be read without taking samples away from training ({error}): make that in "
        "__iter__, or pass a dataset that can be copied, such as a TensorDataset, as data="
    )


@dataclass
class _Reader(IterableDataset[Any]):
    dataset: Any
    collate: Callable[[Any], Any]
    plan: Plan
    seed: int
    made: list[tuple[Any, Any]] | None = None

    def __iter__(self) -> Iterator[Any]:
        dataset, collate, made = self.dataset, self.collate, self.made
        if made is None:  # in a forked process, where nothing reaches the user; files have one position in both, though
            copier = Copier(stand_in=_within_budget(0), otherwise=share)
            dataset, collate, made = copier(dataset), copier(collate), copier.made
        snapshot = Snapshot(made)
        for number, key in self.plan:
            snapshot.restore()
            seed_generators(self.seed, number)
            for position, (_, thing) in enumerate(made):
                seed_generator(thing, self.seed, number, position)
            # The batch may lie in the dataset's own memory.
            yield Copier()(collate(_fetch(dataset, key)))


def _fetch(dataset: Any, key: Any) -> Any:
    if not isinstance(key, list):
        return dataset[key]
    if callable(getattr(dataset, "__getitems__", None)):
        return dataset.__getitems__(key)
    return [dataset[index] for index in key]


def _within_budget(size: int) -> Callable[[Any, Copier], Any]:
    """A `stand_in` that shares arrays and tensors once so many bytes have been copied."""
    left = size

    def stand_in(value: Any, _: Copier) -> Any:
        nonlocal left
        if comes_from(type(value).__module__, _READ_ONLY):
            return value
        if not isinstance(value, (Tensor, np.ndarray)):
            return COPY
        needed = value.numel() * value.element_size() if isinstance(value, Tensor) else value.nbytes
        if needed > left:
            return value
        left -= needed
        return COPY

    return stand_in


def _as_it_is(batch: Any) -> Any:
    return batch
