"""Micro-batches from one source of data, read in the same way as in training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_probes.probing.data.batches import MicroBatch
from lightning_probes.probing.data.contents import length
from lightning_probes.probing.data.cutting import Cutting, pieces
from lightning_probes.probing.data.deferred import read_or_defer
from lightning_probes.probing.data.ordered import Collated, Whole
from lightning_probes.probing.data.reading import Batches, read
from lightning_probes.probing.data.sampling import given_by
from lightning_probes.probing.data.workers import Workers
from lightning_probes.probing.isolation.copying import Copier
from lightning_probes.probing.isolation.seeding import derived_seed


class Iterated:
    """An object with items and a length over which training iterates: each item is a batch.

    Args:
        source: The object that was passed to a Trainer in place of a loader.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        return iter(self.source)


def as_iterated(source: Any) -> Any:
    """Wrap the dataset that was passed to a Trainer in place of a loader; loaders are returned unchanged."""
    return Iterated(source) if not isinstance(source, DataLoader) and is_data(source) else source


def read_source(source: Any, cutting: Cutting) -> list[MicroBatch]:
    """Micro-batches of a DataLoader, a Dataset or another iterable of batches.

    Args:
        source: The user's own object; it does not change.
        cutting: The number of samples, and how to split them. Batches that can't be split are taken whole.

    Returns:
        All micro-batches in order; those that only other processes need have no content.

    Raises:
        MisconfigurationException: If the data can't be read without disturbing training; the message names `data`.
    """
    if isinstance(source, (list, tuple)):
        return _take((Copier()(batch) for batch in source), cutting)
    iterated = isinstance(source, Iterated)
    if iterated:
        source = source.source
    elif is_data(source):
        source = DataLoader(source, batch_size=cutting.micro_batch_size or 64)
    if isinstance(source, DataLoader) and iterates_as_usual(source):
        return (_read_stream if isinstance(source.dataset, IterableDataset) else _read_map_style)(source, cutting)
    if not iterated and (isinstance(source, (str, Tensor, np.ndarray)) or not isinstance(source, Iterable)):
        raise MisconfigurationException(
            f"{type(source).__name__} gives no batches: pass a DataLoader or Dataset as data="
        )
    batches = Whole(Workers(), cutting.seed, source=source).read()
    # Stop at the length, as training does: a loader may raise if it is asked for more batches.
    return _take(itertools.islice(batches, _epoch(source)), cutting, getattr(source, "batch_size", None))


def _epoch(source: Any) -> int | None:
    """The number of batches of an epoch, if the source has a length."""
    try:
        return len(source)
    except (TypeError, NotImplementedError, AttributeError):  # `__len__` is missing, or calls an object without one
        return None


def iterates_as_usual(loader: DataLoader[Any]) -> bool:
    """Whether a loader's batches follow from its dataset, sampler and `collate_fn` alone."""
    kind = type(loader)
    return kind.__iter__ is DataLoader.__iter__ and kind._get_iterator is DataLoader._get_iterator


def is_data(source: Any) -> bool:
    """Whether this is a dataset, by type or by its methods (such as those of Hugging Face)."""
    if isinstance(source, (list, tuple, dict, str, Tensor, np.ndarray)):
        return False
    return isinstance(source, Dataset) or (hasattr(source, "__getitem__") and hasattr(source, "__len__"))


def _read_stream(loader: DataLoader[Any], cutting: Cutting) -> list[MicroBatch]:
    dataset: Any = {"source": loader.dataset, "collate": loader.collate_fn}
    if loader.batch_size is None:
        return _take(Whole(Workers.of(loader), cutting.seed, **dataset).read(), cutting)
    wanted = cutting.wanted(loader.batch_size)
    stream = Collated(
        Workers.of(loader),
        cutting.seed,
        **dataset,
        block=loader.batch_size,
        number=wanted if cutting.limit is None else min(cutting.limit, wanted),
        cut=partial(cutting.sizes, batch_size=loader.batch_size, drop_last=loader.drop_last),
        is_read=cutting.is_read,
    )
    given = list(stream.read())
    in_training = min(loader.batch_size, sum(size for size, _ in given))
    return [MicroBatch(index, size, content, in_training) for index, (size, content) in enumerate(given)]


def _read_map_style(loader: DataLoader[Any], cutting: Cutting) -> list[MicroBatch]:
    reader = partial(Batches, Workers.of(loader), cutting.seed, dataset=loader.dataset, collate=loader.collate_fn)
    chunks, in_training = _chunks(loader, cutting)
    if loader.batch_sampler is None:  # the dataset gives whole batches of unknown size
        return _take(read(reader(plan=list(enumerate(chunks)), many=False)), cutting)
    plan = [(index, chunk) for index, chunk in enumerate(chunks) if cutting.is_read(index)]
    contents = read_or_defer(reader(plan=plan))
    return [
        MicroBatch(index, len(chunk), next(contents) if cutting.is_read(index) else None, in_training)
        for index, chunk in enumerate(chunks)
    ]


def _chunks(loader: DataLoader[Any], cutting: Cutting) -> tuple[list[Any], int | None]:
    """The indices of each micro-batch, and the size of a training batch; keys if the dataset gives whole batches.

    A loader without shuffling may be sorted by class, so a random subset of its samples is drawn.
    """
    chooser = np.random.default_rng(derived_seed(cutting.seed, 0))
    in_batches = loader.batch_size is None and loader.batch_sampler is not None
    sampler: Any = loader.batch_sampler if in_batches else loader.sampler
    wanted = cutting.wanted(loader.batch_size)
    given = given_by(sampler, loader.dataset, wanted, cutting.seed)[: cutting.limit]
    if loader.batch_sampler is None or (in_batches and cutting.micro_batch_size is None):
        shuffled = [given[i] for i in chooser.permutation(len(given))]
        if loader.batch_sampler is None:
            return shuffled, None
        whole = (MicroBatch(index, len(chunk), list(chunk)) for index, chunk in enumerate(shuffled))
        return [batch.content for batch in cutting.choose([*_until_enough(whole, cutting)])], None
    if in_batches:
        given = list(itertools.chain.from_iterable(given))
    chosen = chooser.choice(len(given), size=min(len(given), wanted), replace=False).tolist()
    sizes = cutting.sizes(len(chosen), loader.batch_size, loader.drop_last)
    in_training = None if in_batches else min(loader.batch_size or 1, len(given))
    return [[given[i] for i in chunk] for chunk in pieces(chosen, sizes)], in_training


def _take(batches: Iterable[Any], cutting: Cutting, batch_size: int | None = None) -> list[MicroBatch]:
    """Whole batches, until there are enough samples."""
    limit = None if cutting.limit is None else math.ceil(cutting.limit / (batch_size or 1))
    sized = (MicroBatch(index, length(it), it) for index, it in enumerate(itertools.islice(batches, limit)))
    return cutting.choose([*_until_enough(sized, cutting)])


def _until_enough(batches: Iterable[MicroBatch], cutting: Cutting) -> Iterator[MicroBatch]:
    samples = 0
    for number, batch in enumerate(batches, 1):
        yield batch
        samples += batch.size
        if samples >= cutting.num_samples and number >= cutting.alike:
            return
