"""Fresh samples come one batch after the other, none twice, and training does not notice."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler

from lightning_probes.probing import FreshBatches
from tests.probing.data.test_drawing import N, Numbers, Stream, TestUndisturbed
from tests.probing.data.test_loaders import Twice
from tests.tester import flatten, generators

Own, Locked = TestUndisturbed.Own, TestUndisturbed.Locked


class Noisy(Stream):
    """Samples with random numbers of its own and of the process."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(1)

    def __iter__(self) -> Any:
        for number in super().__iter__():
            yield number, torch.rand((), generator=self.own), torch.rand(()), random.random()


class Batches:
    """An iterable of batches that depend on the generators of the process."""

    def __iter__(self) -> Any:
        for number in range(5):
            yield torch.rand(3) + number, np.random.rand()


SOURCES: dict[str, Any] = {
    "a loader": lambda: DataLoader(Own(), batch_size=8),
    "a loader with workers": lambda: DataLoader(Own(), batch_size=8, num_workers=2),
    "a dataset that cannot be copied": lambda: DataLoader(Locked(), batch_size=8),
    "a stream": lambda: DataLoader(Noisy(), batch_size=8),
    "a stream with a worker": lambda: DataLoader(Noisy(), batch_size=8, num_workers=1),
    "a sampler of batches": lambda: DataLoader(Own(), batch_sampler=BatchSampler(RandomSampler(range(N)), 8, False)),
    "a loader of its own kind": lambda: Twice(Numbers(), batch_size=8),
    "an iterable of batches": Batches,
}


def taken(fresh: Any) -> list[dict[str, str]]:
    return [dict(flatten(batch)) for batch in fresh]


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_from_a_position_on_it_gives_what_it_would_have_given(make: Any) -> None:
    unbroken = taken(FreshBatches(make(), seed=3))
    assert len(unbroken) == 5
    assert len({str(batch) for batch in unbroken}) == 5
    torch.rand(2), random.random()  # training goes on
    first = FreshBatches(make(), seed=3)
    begun = taken(itertools.islice(first, 2))
    assert (first.position, first.exhausted) == (2, False)
    torch.rand(3), np.random.rand()
    resumed = FreshBatches(make(), seed=3, position=first.position)
    assert begun + taken(resumed) == unbroken
    assert (resumed.position, resumed.exhausted) == (5, True)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_generators_and_source_stay_as_they_are(make: Any) -> None:
    source = make()
    data = getattr(source, "dataset", source)
    before = dict(flatten([generators(), vars(data)]))
    for _ in FreshBatches(source):
        assert dict(flatten([generators(), vars(data)])) == before
    assert dict(flatten([generators(), vars(data)])) == before


def numbers(fresh: FreshBatches) -> list[int]:
    return [int(number) for batch in fresh for number in batch.flatten()]


def test_each_sample_comes_once() -> None:
    shuffled = numbers(FreshBatches(DataLoader(Numbers(), batch_size=8)))
    assert sorted(shuffled) == list(range(N)) != shuffled
    weighted = WeightedRandomSampler([1.0] * N, 4 * N, generator=torch.Generator().manual_seed(1))
    several = numbers(FreshBatches(DataLoader(Numbers(), batch_size=8, sampler=weighted)))
    assert len(several) == len(set(several))
    assert numbers(FreshBatches(Numbers(), seed=1)) != numbers(FreshBatches(Numbers(), seed=2))
    assert numbers(FreshBatches(DataLoader(Stream(), batch_size=8))) == list(range(N))


@pytest.mark.parametrize("kind", [Numbers, Stream])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_last_batch_is_what_the_loader_makes_of_it(kind: Any, drop_last: bool) -> None:
    loader = DataLoader(kind(), batch_size=16, drop_last=drop_last)
    assert [len(batch) for batch in FreshBatches(loader)] == [16, 16] + [8] * (not drop_last)


def test_exhausted_is_said_when_there_is_no_further_batch() -> None:
    fresh = FreshBatches(Numbers(), batch_size=N)
    next(fresh)
    assert not fresh.exhausted
    assert next(fresh, None) is None
    assert (fresh.exhausted, fresh.position) == (True, 1)
    assert next(FreshBatches(Numbers(), batch_size=N, position=7), None) is None


def test_a_dataset_that_changes_meanwhile_gives_what_it_would_have_given() -> None:
    class Labelled(Numbers):
        def __init__(self) -> None:
            super().__init__()
            self.labels = torch.arange(N)

        def __getitem__(self, index: int) -> Any:
            return self.labels[index]

    data = Labelled()
    fresh = FreshBatches(data, batch_size=8)
    begun = next(fresh).tolist()
    data.labels.zero_()
    assert sorted(begun + numbers(fresh)) == list(range(N))


def test_what_can_be_read_once_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="can't be read without taking samples away"):
        FreshBatches(torch.ones(3) for _ in range(3))
