"""The samples that a loader can give: read from a copy of its sampler, as in a single process."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch.utils.data import Dataset, DistributedSampler, RandomSampler, SequentialSampler

from lightning_probes.probing.data.reading import Reader, read_here_or_elsewhere, refuse_what_can_be_read_once
from lightning_probes.probing.data.workers import Workers
from lightning_probes.probing.isolation.copying import COPY, Copier
from lightning_probes.probing.isolation.seeding import seed_generator
from lightning_probes.probing.origin import LIGHTNING, comes_from


def given_by(sampler: Iterable[Any], dataset: Any, at_least: int, seed: int) -> Sequence[Any]:
    """The output of one epoch of a sampler over all processes, without changing the sampler.

    Args:
        sampler: The user's sampler of indices, or of batches of indices.
        dataset: The user's dataset, which the sampler may refer to; it is not copied.
        at_least: Number of items to take from a sampler without a length.
        seed: Seeds the sampler's own generators; the caller seeds the global ones.

    Returns:
        The indices, or batches of indices, in order.

    Raises:
        MisconfigurationException: If the sampler can't be copied because it holds an object that can be read only once,
            or if the platform can't fork; the message names `data`.

    Example:
        >>> given_by(RandomSampler(range(5)), range(5), at_least=5, seed=0)
        range(0, 5)
    """
    sampler = _undivided(sampler)
    if type(sampler) in (RandomSampler, SequentialSampler):  # these give every index, in any order
        return range(len(sampler.data_source))  # type: ignore[attr-defined]
    reader = _Given(Workers(), seed, sampler=sampler, dataset=dataset, at_least=at_least)
    [given] = read_here_or_elsewhere(reader, refuse_what_can_be_read_once)
    return given  # type: ignore[no-any-return]


@dataclass
class _Given(Reader):
    """The list of a sampler's items, read from a copy of the sampler that shares the dataset."""

    theirs: ClassVar[tuple[str, ...]] = ("sampler",)
    sampler: Any = None
    dataset: Any = None
    at_least: int = 0

    def with_copies(self, copier: Copier) -> _Given:
        """A reader of a copy of the sampler."""
        copier.stand_in = lambda value, _: value if value is self.dataset or isinstance(value, Dataset) else COPY
        copied = copier(self.sampler)
        if isinstance(getattr(copied, "sampler", None), DistributedSampler):  # a batch sampler's
            copied.sampler = copier(_undivided(copied.sampler))
        return replace(self, sampler=copied, made=copier.made)

    def __iter__(self) -> Iterator[list[Any]]:
        own = self.own()
        for number, (_, thing) in enumerate(own.made or ()):
            seed_generator(thing, self.seed, number)
        if isinstance(own.sampler, DistributedSampler):
            yield list(dict.fromkeys(_over_processes(own.sampler)))
        else:
            length = len(own.sampler) if hasattr(own.sampler, "__len__") else self.at_least
            yield list(itertools.islice(own.sampler, length))


def _undivided(sampler: Any) -> Any:
    """The sampler whose items a distributed sampler splits across processes; other samplers are returned unchanged."""
    if not isinstance(sampler, DistributedSampler):
        return sampler
    dataset: Any = sampler.dataset
    if hasattr(dataset, "_sampler"):  # Lightning's wrapper of any other sampler
        return dataset._sampler
    if comes_from(type(sampler), ("torch", *LIGHTNING)):
        return (RandomSampler if sampler.shuffle else SequentialSampler)(dataset)
    return sampler


def _over_processes(sampler: DistributedSampler[Any]) -> Iterator[Any]:
    for rank in range(sampler.num_replicas):
        share = copy.copy(sampler)
        share.rank = rank
        yield from share
