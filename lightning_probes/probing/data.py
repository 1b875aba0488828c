"""Probe data: a fixed set of samples, drawn once without touching the user's loader, sampler, dataset or generators."""

from __future__ import annotations

import itertools
import math
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_probes.probing.copying import Copier
from lightning_probes.probing.seeding import derived_seed, isolated_rng, seed_generators

DataSource: TypeAlias = Literal["train", "val"] | DataLoader[Any] | Dataset[Any]

# Arrays above this size are the data itself and are read where they lie; smaller ones may be state and are copied.
_SHARED_BYTES = 2**20


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
        limit: Use only the first so many samples that the loader gives (`Trainer(overfit_batches=...)`).
    """

    num_samples: int
    micro_batch_size: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    limit: int | None = field(default=None)

    def draw(self, loaders: Any, mode: str = "max_size_cycle") -> ProbeSet:
        """Draw a set from a loader, or from a collection of loaders recombined as Lightning recombines them.

        Args:
            loaders: A DataLoader, a Dataset, another iterable of batches, or a list, tuple or dict of those.
            mode: The `CombinedLoader` mode of a collection. "sequential" shares `num_samples` among the loaders.

        Returns:
            The micro-batches dealt to this process.

        Raises:
            MisconfigurationException: If the data can't be read without disturbing training; names `data`.

        Example:
            >>> probe_set = Drawing(num_samples=10, micro_batch_size=4).draw(DataLoader(range(100), batch_size=32))
            >>> probe_set.sizes, len(probe_set.batches[0].content)
            ([4, 3, 3], 4)
        """
        with isolated_rng():
            seed_generators(self.seed)
            if _is_source(loaders):
                batches = _read(loaders, self)
            else:
                batches = _recombine(loaders, mode, self)
        if not batches:
            raise MisconfigurationException("the probe data is empty: pass a loader with at least one sample as data=")
        mine = [batch for batch in batches if batch.index % self.world_size == self.rank]
        return ProbeSet(mine, [batch.size for batch in batches], batches[0])

    def is_read(self, index: int) -> bool:
        """Whether this process needs the content of micro-batch `index`."""
        return index == 0 or index % self.world_size == self.rank


def _is_source(loaders: Any) -> bool:
    return isinstance(loaders, (DataLoader, Dataset)) or not isinstance(loaders, (list, tuple, dict))


def _recombine(loaders: Any, mode: str, drawing: Drawing) -> list[MicroBatch]:
    leaves, spec = tree_flatten(loaders)
    share = math.ceil(drawing.num_samples / len(leaves)) if mode == "sequential" else drawing.num_samples
    # Any of these batches may be combined with any other, so every process reads them all.
    one_process = Drawing(share, drawing.micro_batch_size, drawing.seed, limit=drawing.limit)
    parts = [_read(leaf, one_process) for leaf in leaves]
    combined = []
    for content, *_ in CombinedLoader(spec.unflatten(parts), mode):  # type: ignore[arg-type]
        items, structure = tree_flatten(content, is_leaf=lambda item: isinstance(item, MicroBatch))
        size = max(item.size for item in items if item is not None)
        combined.append((size, structure.unflatten([None if item is None else item.content for item in items])))
    return [MicroBatch(index, size, content) for index, (size, content) in enumerate(combined)]


def _read(source: Any, drawing: Drawing) -> list[MicroBatch]:
    if isinstance(source, Dataset) and not isinstance(source, DataLoader):
        source = DataLoader(source, batch_size=drawing.micro_batch_size or 64)
    if not isinstance(source, DataLoader):
        return _take_batches(_copied(source), drawing)
    if isinstance(source.dataset, IterableDataset):
        return _read_stream(source, drawing)
    return _read_map_style(source, drawing)


def _read_stream(loader: DataLoader[Any], drawing: Drawing) -> list[MicroBatch]:
    dataset, collate = _copied((loader.dataset, loader.collate_fn))
    if loader.batch_size is None:
        return _take_batches((collate(item) for item in dataset), drawing)
    samples = list(itertools.islice(iter(dataset), drawing.num_samples))
    micro_batch_size = drawing.micro_batch_size or loader.batch_size
    return [
        MicroBatch(index, len(chunk), collate([samples[i] for i in chunk]) if drawing.is_read(index) else None)
        for index, chunk in enumerate(_cut(range(len(samples)), micro_batch_size))
    ]


def _read_map_style(loader: DataLoader[Any], drawing: Drawing) -> list[MicroBatch]:
    plan = _plan(loader, drawing)
    contents = iter(_isolated_loader(loader, [chunk for index, chunk in enumerate(plan) if drawing.is_read(index)]))
    if loader.batch_sampler is None:  # the dataset gives whole batches
        batches = [next(contents) if drawing.is_read(index) else None for index in range(len(plan))]
        return [MicroBatch(index, 1 if item is None else _length(item), item) for index, item in enumerate(batches)]
    return [
        MicroBatch(index, len(chunk), next(contents) if drawing.is_read(index) else None)
        for index, chunk in enumerate(plan)
    ]


def _plan(loader: DataLoader[Any], drawing: Drawing) -> list[list[Any]]:
    """Which samples make up which micro-batch."""
    chooser = np.random.default_rng(derived_seed(drawing.seed, 0))
    if loader.batch_size is None and loader.batch_sampler is not None and drawing.micro_batch_size is None:
        chunks = list(_indices(loader.batch_sampler, drawing))
        order = chooser.permutation(len(chunks))
        ends = np.cumsum([len(chunks[i]) for i in order])
        return [list(chunks[i]) for i in order[: int(np.searchsorted(ends, drawing.num_samples)) + 1]]
    if loader.batch_size is None and loader.batch_sampler is not None:
        indices = list(itertools.chain.from_iterable(_indices(loader.batch_sampler, drawing)))
    else:
        indices = list(itertools.islice(_indices(loader.sampler, drawing), drawing.limit))
    if loader.batch_sampler is None:
        return [[index] for index in indices[: drawing.num_samples]]
    # A loader that does not shuffle may well be sorted by class: a random subset of what it gives stands for all of it.
    chosen = chooser.permutation(len(indices))[: drawing.num_samples]
    micro_batch_size = drawing.micro_batch_size or loader.batch_size or len(chosen)
    return [[indices[i] for i in chunk] for chunk in _cut(chosen, micro_batch_size)]


def _indices(sampler: Iterable[Any], drawing: Drawing) -> Iterator[Any]:
    """What a copy of the user's sampler gives, on one process, with seeded generators."""
    if isinstance(sampler, DistributedSampler):
        inner = getattr(sampler.dataset, "_sampler", None)  # Lightning's wrapper of a sampler that is not distributed
        if inner is not None:
            sampler = inner
        else:
            sampler = (RandomSampler if sampler.shuffle else SequentialSampler)(sampler.dataset)  # type: ignore[arg-type]
    copier = Copier(share=lambda item: isinstance(item, (Dataset, Tensor, np.ndarray)))
    copied = copier(sampler)
    for thing in copier.objects:
        for value in getattr(thing, "__dict__", {}).values():
            if isinstance(value, torch.Generator):
                value.manual_seed(derived_seed(drawing.seed, 1))
    return iter(copied) if hasattr(copied, "__len__") else itertools.islice(copied, drawing.num_samples)


def _isolated_loader(loader: DataLoader[Any], plan: list[list[Any]]) -> Iterable[Any]:
    """A loader over a copy of the dataset, or over the dataset in a forked process where it can't be copied."""
    whole_batches = loader.batch_sampler is None
    schedule: dict[str, Any] = (
        {"batch_size": None, "sampler": [chunk[0] for chunk in plan]} if whole_batches else {"batch_sampler": plan}
    )
    try:
        copier = Copier(share=_is_large_array, strict=True)
        dataset, collate = copier(loader.dataset), copier(loader.collate_fn)
        workers: dict[str, Any] = {}
    except Exception as error:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise _unreadable(loader.dataset, error) from error
        dataset, collate = loader.dataset, loader.collate_fn
        workers = {"num_workers": 1, "multiprocessing_context": "fork", "worker_init_fn": loader.worker_init_fn}
    return DataLoader(dataset, collate_fn=collate, generator=torch.Generator(), **schedule, **workers)


def _copied(value: Any) -> Any:
    try:
        return Copier(share=_is_large_array, strict=True)(value)
    except Exception as error:
        raise _unreadable(value[0] if isinstance(value, tuple) else value, error) from error


def _unreadable(source: Any, error: Exception) -> MisconfigurationException:
    return MisconfigurationException(
        f"{type(source).__name__} can't be copied ({error}), so reading it would take samples away from training: pass a "
        "loader or dataset of its own as data="
    )


def _is_large_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.nbytes > _SHARED_BYTES


def _cut(items: Sequence[int] | np.ndarray[Any, Any], micro_batch_size: int) -> list[list[int]]:
    pieces = max(1, math.ceil(len(items) / micro_batch_size))
    return [chunk.tolist() for chunk in np.array_split(np.asarray(items, dtype=np.int64), pieces) if len(chunk)]


def _take_batches(batches: Iterable[Any], drawing: Drawing) -> list[MicroBatch]:
    taken: list[MicroBatch] = []
    samples = 0
    for content in batches:
        if samples >= drawing.num_samples:
            break
        taken.append(MicroBatch(len(taken), _length(content), content))
        samples += taken[-1].size
    return taken


def _length(batch: Any) -> int:
    """Samples in a batch that arrived whole: the length of its first tensor, 1 where there is none."""
    sizes = (leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
    return next(sizes, 1)
