"""Which samples a loader can give: read from a copy of its sampler, as on one process."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, DistributedSampler, RandomSampler, SequentialSampler

from lightning_probes.probing.copying import COPY, Copier, refuse
from lightning_probes.probing.seeding import seed_generator

_FRAMEWORKS = ("torch.", "lightning.", "pytorch_lightning.")


def given_by(sampler: Iterable[Any], dataset: Any, at_least: int, seed: int) -> Sequence[Any]:
    """What one epoch of a sampler gives over all processes, without touching the sampler.

    Args:
        sampler: The user's sampler of indices, or of batches of them.
        dataset: The user's dataset, which the sampler may hold; it is not copied.
        at_least: How many to take from a sampler that does not say how many it has.
        seed: Seeds the generators that the sampler owns; those of the process are the caller's to seed.

    Returns:
        The indices, or batches of them, in order.

    Raises:
        CopyError: If the sampler can't be copied.

    Example:
        >>> given_by(RandomSampler(range(5)), range(5), at_least=5, seed=0)
        range(0, 5)
    """
    sampler = _undivided(sampler)
    if type(sampler) in (RandomSampler, SequentialSampler):  # whatever the order, these give every index
        return range(len(sampler.data_source))  # type: ignore[attr-defined]
    copier = Copier(
        stand_in=lambda value, _: value if value is dataset or isinstance(value, Dataset) else COPY, otherwise=refuse
    )
    copied = copier(sampler)
    if isinstance(getattr(copied, "sampler", None), DistributedSampler):  # a batch sampler's
        copied.sampler = copier(_undivided(copied.sampler))
    for number, (_, thing) in enumerate(copier.made):
        seed_generator(thing, seed, number)
    if isinstance(copied, DistributedSampler):
        return list(dict.fromkeys(_over_processes(copied)))
    return list(itertools.islice(copied, len(copied) if hasattr(copied, "__len__") else at_least))


def _undivided(sampler: Any) -> Any:
    """What a distributed sampler deals out to the processes; another sampler as it is."""
    if not isinstance(sampler, DistributedSampler):
        return sampler
    dataset: Any = sampler.dataset
    if hasattr(dataset, "_sampler"):  # Lightning's wrapper of any other sampler
        return dataset._sampler
    if type(sampler).__module__.startswith(_FRAMEWORKS):
        return (RandomSampler if sampler.shuffle else SequentialSampler)(dataset)
    return sampler


def _over_processes(sampler: DistributedSampler[Any]) -> Iterator[Any]:
    for rank in range(sampler.num_replicas):
        share = copy.copy(sampler)
        share.rank = rank
        yield from share
