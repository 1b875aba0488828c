"""A stream of fresh samples: each is read once, during training and without disturbing it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from lightning_probes.probing.data.cutting import pieces
from lightning_probes.probing.data.deferred import PrivateDataset
from lightning_probes.probing.data.loaders import is_data, iterates_as_usual
from lightning_probes.probing.data.ordered import Whole
from lightning_probes.probing.data.reading import Batches, read
from lightning_probes.probing.data.sampling import given_by
from lightning_probes.probing.data.workers import Workers
from lightning_probes.probing.isolation.copying import Copier
from lightning_probes.probing.isolation.seeding import derived_seed, isolated_rng, seed_generators


class FreshBatches(Iterator[Any]):
    """The batches of a source, each of them once, read from a private copy of the source.

    The samples of a map-style dataset are shuffled once. Other samples keep the order of their source. Batch k depends
    only on the source, the seed and k. The random generators of the process and of the source do not change.

    Args:
        source: A DataLoader, a Dataset or another iterable of batches, with samples that training does not use.
        batch_size: Number of samples in a batch of a Dataset. A loader has its own batch size.
        seed: Determines the order and the random numbers of each batch.
        position: Number of batches to skip in a resumed run, because they were taken before the interruption. The
            source must be in the state that it had at the start. A map-style dataset does not read these batches;
            other sources read and drop them.

    Attributes:
        position: Number of batches taken so far. A resumed run needs only this number.
        exhausted: Whether the source had no further batch.

    Raises:
        MisconfigurationException: If the source can be read only once and can't be copied.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> fresh = FreshBatches(TensorDataset(torch.arange(5)), batch_size=2)
        >>> [len(x) for x, in fresh], fresh.position, fresh.exhausted
        ([2, 2, 1], 3, True)
    """

    def __init__(self, source: Any, *, batch_size: int = 64, seed: int = 0, position: int = 0) -> None:
        self.position = position
        self.exhausted = False
        with isolated_rng():
            seed_generators(seed)
            self._batches = _batches(source, batch_size, seed, position)

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            StopIteration: If there is no further batch; `exhausted` is then true.
        """
        with isolated_rng():
            try:
                batch = next(self._batches)
            except StopIteration:
                self.exhausted = True
                raise
        self.position += 1
        return batch


def _batches(source: Any, batch_size: int, seed: int, position: int) -> Iterator[Any]:
    if is_data(source):
        source = DataLoader(source, batch_size=batch_size)
    if not isinstance(source, DataLoader) or not iterates_as_usual(source):
        return itertools.islice(_InOrder(Workers(), seed, source=source).read(), position, None)
    if isinstance(source.dataset, IterableDataset):
        stream = _InOrder(
            Workers.of(source), seed, source=source.dataset, collate=source.collate_fn, block=source.batch_size or 1,
            size=source.batch_size, drop_last=source.drop_last,
        )  # fmt: skip
        return itertools.islice(stream.read(), position, None)
    return _map_style(source, seed, position)


def _map_style(loader: DataLoader[Any], seed: int, position: int) -> Iterator[Any]:
    in_batches = loader.batch_size is None and loader.batch_sampler is not None
    sampler: Any = loader.batch_sampler if in_batches else loader.sampler
    given = given_by(sampler, loader.dataset, len(loader.dataset), seed)  # type: ignore[arg-type]
    keys: list[Any] = [given[i] for i in np.random.default_rng(derived_seed(seed, 0)).permutation(len(given))]
    if loader.batch_size is not None:
        size = loader.batch_size
        keys = list(dict.fromkeys(keys))  # a sampler with replacement gives some samples twice
        last = 0 if loader.drop_last else len(keys) % size
        keys = [*pieces(keys, [size] * (len(keys) // size) + [last] * bool(last))]
    plan = [*enumerate(keys)][position:]
    reader = Batches(
        Workers.of(loader), seed, dataset=loader.dataset, collate=loader.collate_fn, plan=plan,
        many=loader.batch_sampler is not None,
    )  # fmt: skip
    try:
        dataset = None if reader.workers.set_up else PrivateDataset(reader)
    except Exception:  # a dataset that can't be copied is read in another process
        dataset = None
    return read(reader) if dataset is None else itertools.starmap(dataset.read, plan)


@dataclass
class _InOrder(Whole):
    """Batches in the order of their source, each with its own random numbers.

    Args:
        size: Number of samples in a batch; None if the items are batches.
        drop_last: Whether to drop an incomplete last batch.
    """

    size: int | None = None
    drop_last: bool = False

    def __iter__(self) -> Iterator[Any]:
        items, collate = self.items()
        for number in itertools.count():
            seed_generators(self.seed, number)
            group = list(itertools.islice(items, self.size or 1))
            if not group or (self.drop_last and self.size is not None and len(group) < self.size):
                return
            batch = group[0] if self.size is None else group
            yield Copier()(batch if collate is None else collate(batch))
