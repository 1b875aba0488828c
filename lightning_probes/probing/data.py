"""Probe data: a fixed set of samples, drawn once without touching the user's loader, sampler, dataset or generators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_probes.probing.copying import Copier, CopyError
from lightning_probes.probing.reading import own_copy, read, unreadable
from lightning_probes.probing.sampling import given_by
from lightning_probes.probing.seeding import derived_seed, isolated_rng, seed_generators

DataSource: TypeAlias = Literal["train", "val"] | DataLoader[Any] | Dataset[Any]


@dataclass(frozen=True)
class MicroBatch:
    """A collated batch of probe samples, kept as the user's `collate_fn` made it.

    Attributes:
        index: Its number in the whole probe set, the same however many processes share the set. Seeds every pass.
        size: Number of samples in it.
        content: The batch.
    """

    index: int
    size: int
    content: Any


@dataclass(frozen=True)
class ProbeSet:
    """This process's share of a probe set, and the sizes of the whole.

    Attributes:
        batches: The micro-batches dealt to this process, in order.
        sizes: Number of samples of every micro-batch of the set, on whichever process.
        first: The first micro-batch of the set, which every process has, to try things on.
    """

    batches: Sequence[MicroBatch]
    sizes: Sequence[int]
    first: MicroBatch

    @property
    def num_samples(self) -> int:
        """Samples in the whole set."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Drawing:
    """How to draw a probe set.

    Args:
        num_samples: How many samples to draw; all of them where there are fewer.
        micro_batch_size: The most samples in one forward pass; None takes the loader's batch size. Samples are cut into
            micro-batches of nearly equal size, so that no leftover of one or two samples stands at the end.
        seed: Decides which samples are drawn.
        rank: This process.
        world_size: Number of processes that share the set.
        limit: Use only the first so many samples that the loader gives (`Trainer(overfit_batches=...)`); batches, where
            the loader does not tell its batch size.
    """

    num_samples: int
    micro_batch_size: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    limit: int | None = None

    def draw(self, loaders: Any, mode: str = "max_size_cycle") -> ProbeSet:
        """Draw a set from a loader, or from a collection of loaders recombined as Lightning recombines them.

        Args:
            loaders: A DataLoader, a Dataset, another iterable of batches, or a list, tuple or dict of those.
            mode: The `CombinedLoader` mode of a collection. "sequential" shares `num_samples` among the loaders.

        Returns:
            The micro-batches dealt to this process.

        Raises:
            MisconfigurationException: If the data can't be read without disturbing training, or there is none; names
                `data`.

        Example:
            >>> probe_set = Drawing(num_samples=10, micro_batch_size=4).draw(DataLoader(range(100), batch_size=32))
            >>> probe_set.sizes, len(probe_set.batches[0].content)
            ([4, 3, 3], 4)
        """
        if hasattr(loaders, "iterables") and hasattr(loaders, "_mode"):  # a CombinedLoader, of either Lightning
            loaders, mode = loaders.iterables, loaders._mode
        with isolated_rng():
            seed_generators(self.seed)
            batches = _read(loaders, self) if _is_source(loaders) else _recombine(loaders, mode, self)
        if not batches:
            raise MisconfigurationException("the probe data is empty: pass a loader with at least one sample as data=")
        mine = [batch for batch in batches if batch.index % self.world_size == self.rank]
        return ProbeSet(mine, [batch.size for batch in batches], batches[0])

    def is_read(self, index: int) -> bool:
        """Whether this process needs the content of micro-batch `index`."""
        return index == 0 or index % self.world_size == self.rank


def _is_source(loaders: Any) -> bool:
    """Whether this gives batches, rather than being a collection of such things."""
    if not isinstance(loaders, (list, tuple, dict)):
        return True
    if isinstance(loaders, dict):
        return False
    return any(isinstance(leaf, (Tensor, np.ndarray, int, float, str)) for leaf in tree_leaves(loaders))


def _recombine(loaders: Any, mode: str, drawing: Drawing) -> list[MicroBatch]:
    sources, structure = tree_flatten(loaders, is_leaf=_is_source)
    share = math.ceil(drawing.num_samples / max(1, len(sources))) if mode == "sequential" else drawing.num_samples
    # Any of these batches may be combined with any other, so every process reads them all.
    whole = replace(drawing, num_samples=share, rank=0, world_size=1)
    parts = [_read(source, whole) for source in sources]
    if mode == "sequential":
        return [replace(batch, index=index) for index, batch in enumerate(itertools.chain.from_iterable(parts))]
    return [
        MicroBatch(
            index,
            max(item.size for item in items if item is not None),
            structure.unflatten([None if item is None else item.content for item in items]),
        )
        for index, items in enumerate(_side_by_side(parts, mode))
    ]


def _side_by_side(parts: Sequence[Sequence[MicroBatch]], mode: str) -> Iterable[Sequence[MicroBatch | None]]:
    """What Lightning's `CombinedLoader` gives from batches of several loaders."""
    if mode == "max_size":
        return itertools.zip_longest(*parts)
    if mode == "max_size_cycle" and all(parts):
        longest = max(map(len, parts), default=0)
        return ([part[index % len(part)] for part in parts] for index in range(longest))
    return zip(*parts, strict=False)


def _read(source: Any, drawing: Drawing) -> list[MicroBatch]:
    if isinstance(source, (list, tuple)):
        return _take((Copier()(batch) for batch in source), drawing)
    is_array = isinstance(source, (str, Tensor, np.ndarray))
    if not is_array and (isinstance(source, Dataset) or _is_table(source)):
        source = DataLoader(source, batch_size=drawing.micro_batch_size or 64)
    if isinstance(source, DataLoader):
        return (_read_stream if isinstance(source.dataset, IterableDataset) else _read_map_style)(source, drawing)
    if is_array or not isinstance(source, Iterable):
        raise MisconfigurationException(
            f"{type(source).__name__} gives no batches: pass a DataLoader or Dataset as data="
        )
    return _take(own_copy(source), drawing)


def _is_table(source: Any) -> bool:
    """Whether this is a dataset by its methods, such as one of Hugging Face's."""
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _read_stream(loader: DataLoader[Any], drawing: Drawing) -> list[MicroBatch]:
    dataset, collate = own_copy(loader.dataset, loader.collate_fn)
    if loader.batch_size is None:
        return _take((collate(item) for item in dataset), drawing)
    number = drawing.num_samples if drawing.limit is None else min(drawing.limit, drawing.num_samples)
    samples = list(itertools.islice(dataset, number))
    return [
        MicroBatch(index, len(chunk), collate([samples[i] for i in chunk]) if drawing.is_read(index) else None)
        for index, chunk in enumerate(_cut(np.arange(len(samples)), drawing.micro_batch_size or loader.batch_size))
    ]


def _read_map_style(loader: DataLoader[Any], drawing: Drawing) -> list[MicroBatch]:
    chunks = _chunks(loader, drawing)
    if loader.batch_sampler is None:  # the dataset gives whole batches, whose sizes show when they are read
        return _take(
            read(loader.dataset, loader.collate_fn, enumerate(chunks), drawing.seed, loader.worker_init_fn), drawing
        )
    plan = [(index, chunk) for index, chunk in enumerate(chunks) if drawing.is_read(index)]
    contents = read(loader.dataset, loader.collate_fn, plan, drawing.seed, loader.worker_init_fn)
    return [
        MicroBatch(index, len(chunk), next(contents) if drawing.is_read(index) else None)
        for index, chunk in enumerate(chunks)
    ]


def _chunks(loader: DataLoader[Any], drawing: Drawing) -> list[Any]:
    """The indices of each micro-batch; one key each, where the dataset gives whole batches.

    A loader that does not shuffle may well be sorted by class: a random subset of what it gives stands for all of it.
    """
    chooser = np.random.default_rng(derived_seed(drawing.seed, 0))
    in_batches = loader.batch_size is None and loader.batch_sampler is not None
    sampler: Any = loader.batch_sampler if in_batches else loader.sampler
    try:
        given = given_by(sampler, loader.dataset, drawing.num_samples, drawing.seed)[: drawing.limit]
    except CopyError as error:
        raise unreadable(sampler, error) from error
    if loader.batch_sampler is None or (in_batches and drawing.micro_batch_size is None):
        shuffled = [given[i] for i in chooser.permutation(len(given))]
        if loader.batch_sampler is None:
            return shuffled
        ends = np.cumsum([len(chunk) for chunk in shuffled])
        return [list(chunk) for chunk in shuffled[: int(np.searchsorted(ends, drawing.num_samples)) + 1]]
    if in_batches:
        given = list(itertools.chain.from_iterable(given))
    chosen = chooser.choice(len(given), size=min(len(given), drawing.num_samples), replace=False)
    return [[given[i] for i in chunk] for chunk in _cut(chosen, drawing.micro_batch_size or loader.batch_size or 1)]


def _cut(items: np.ndarray[Any, Any], micro_batch_size: int) -> list[list[int]]:
    pieces = max(1, math.ceil(len(items) / micro_batch_size))
    return [chunk.tolist() for chunk in np.array_split(items, pieces) if len(chunk)]


def _take(batches: Iterable[Any], drawing: Drawing) -> list[MicroBatch]:
    """Batches that come whole, until there are samples enough."""
    taken: list[MicroBatch] = []
    samples = 0
    for content in itertools.islice(batches, drawing.limit):
        taken.append(MicroBatch(len(taken), _length(content), content))
        samples += taken[-1].size
        if samples >= drawing.num_samples:
            break
    return taken


def _length(batch: Any) -> int:
    """Samples in a batch that arrived whole: the length of its first array, 1 where there is none."""
    copier = Copier()  # which finds its way into any object
    copier(batch)
    arrays = (copied for _, copied in copier.made if isinstance(copied, (Tensor, np.ndarray)))
    return next((array.shape[0] for array in arrays if array.ndim), 1)
