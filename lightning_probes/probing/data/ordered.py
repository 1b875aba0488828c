"""Sources that give samples or batches in an order of their own: iterable datasets, and the user's iterables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_probes.probing.data.reading import (
    Reader,
    read_here_or_elsewhere,
    refuse_what_can_be_read_once,
    within_budget,
)
from lightning_probes.probing.data.workers import elsewhere
from lightning_probes.probing.isolation.copying import Copier, share
from lightning_probes.probing.isolation.seeding import seed_generator, seed_generators


@dataclass
class Whole(Reader):
    """Whole batches from the user's own iterable or an `IterableDataset`.

    Args:
        source: The iterable.
        collate: Applied to each item.
        block: Number of items that each of the loader's workers gives in turn.
    """

    theirs: ClassVar[tuple[str, ...]] = ("source", "collate")
    source: Any = None
    collate: Callable[[Any], Any] | None = None
    block: int = 1

    def __iter__(self) -> Iterator[Any]:
        items, collate = self.items()
        for item in items:
            # Copied, because the batch may share memory with the source.
            yield Copier()(item if collate is None else collate(item))

    def read(self) -> Iterator[Any]:
        """Read on demand."""
        if self.workers.number > 0:
            return elsewhere(self, self.workers)
        return read_here_or_elsewhere(self, refuse_what_can_be_read_once)

    def items(self) -> tuple[Iterator[Any], Callable[[Any], Any] | None]:
        """The items in the order of training, and a private `collate`."""
        if self.workers.number > 0:
            workers = [self._of_worker(number) for number in range(self.workers.number)]
            return _in_turn(workers, self.block), self._in_a_worker().collate
        own = self.own()
        own.seed_generators()
        return _from_its_beginning(own.source), own.collate

    def seed_generators(self) -> None:
        """Seed the source's own generators, so that its items do not depend on earlier draws."""
        for position, (_, thing) in enumerate(self.made or ()):
            seed_generator(thing, self.seed, position)

    def _of_worker(self, number: int) -> Iterator[Any]:
        """The items of one worker, from its own copy of the dataset."""
        own = self._in_a_worker()
        self.workers.start(number, own.source, self.seed)
        own.seed_generators()
        iterator = iter(own.source)
        while True:
            self.workers.become(number, own.source, self.seed)  # in between, others were active
            try:
                yield next(iterator)
            except StopIteration:
                return

    def _in_a_worker(self) -> Whole:
        return self.with_copies(Copier(stand_in=within_budget(0), otherwise=share))


@dataclass
class Collated(Whole):
    """Micro-batches of the samples of an `IterableDataset`, each as its size and its collated samples.

    Args:
        number: Number of samples to take.
        cut: Maps the number of samples to the sizes of the micro-batches.
        is_read: Whether this process needs a micro-batch; None stands in place of the others.
    """

    number: int = 0
    cut: Callable[[int], Sequence[int]] | None = None
    is_read: Callable[[int], bool] | None = None

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        assert self.cut is not None
        assert self.is_read is not None
        items, collate = self.items()
        assert collate is not None
        samples = list(itertools.islice(items, self.number))
        start = 0
        for index, size in enumerate(self.cut(len(samples))):
            seed_generators(self.seed, index)  # so a batch does not depend on the others
            yield size, collate(samples[start : start + size]) if self.is_read(index) else None
            start += size


def _from_its_beginning(source: Iterable[Any]) -> Iterator[Any]:
    """Iterate once, and again if there was nothing, because the source was at its end."""
    empty = True
    for item in source:
        empty = False
        yield item
    if empty:
        yield from source


def _in_turn(iterators: Iterable[Iterator[Any]], block: int) -> Iterator[Any]:
    """`block` items of each iterator in turn, until all are exhausted."""
    left = list(iterators)
    while left:
        for iterator in list(left):
            items = list(itertools.islice(iterator, block))
            yield from items
            if len(items) < block:
                left.remove(iterator)
