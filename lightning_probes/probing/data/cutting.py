"""How many samples to draw, and into which micro-batches they are cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lightning_probes.probing.data.batches import MicroBatch


@dataclass(frozen=True)
class Cutting:
    """How many samples to draw, and into which micro-batches to cut them.

    Args:
        num_samples: How many samples to draw; all of them where there are fewer.
        micro_batch_size: The most samples in one forward pass; None takes the loader's batch size. Samples are cut into
            micro-batches of nearly equal size, so that no leftover of one or two samples stands at the end. Where the
            loader's own size is taken and it drops what is left over, all but full ones are left out here, too.
        seed: Decides which samples are drawn.
        rank: This process.
        world_size: Number of processes that share the set.
        limit: Use only the first so many samples that the loader gives (`Trainer(overfit_batches=...)`); batches, where
            the loader does not tell its batch size.
        most: Cut every micro-batch again, into parts of at most so many samples.
        full: Take micro-batches of no other size than the loader's own, even if that takes more samples, wherever there
            are enough for one.
        alike: Take micro-batches of one size, and a multiple of so many of them; 0 asks for neither.

    Example:
        >>> Cutting(512).sizes(512, batch_size=100), Cutting(512).sizes(512, batch_size=100, drop_last=True)
        ([86, 86, 85, 85, 85, 85], [100, 100, 100, 100, 100])
    """

    num_samples: int
    micro_batch_size: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    limit: int | None = None
    most: int | None = None
    full: bool = False
    alike: int = 0

    def is_read(self, index: int) -> bool:
        """Whether this process needs the content of micro-batch `index`."""
        return index == 0 or index % self.world_size == self.rank

    def wanted(self, batch_size: int | None) -> int:
        """How many samples to ask a loader for."""
        least = self._size(batch_size) * max(1, self.alike) if self.full else 0
        return max(self.num_samples, least)

    def sizes(self, available: int, batch_size: int | None = None, drop_last: bool = False) -> list[int]:
        """Sizes of the micro-batches.

        Args:
            available: How many samples there are to cut, in the order in which they are cut.
            batch_size: That of the loader.
            drop_last: Whether the loader drops what is left over.
        """
        size = self._size(batch_size)
        if self.alike:
            size = min(size, available // self.alike)
            number = available // (self.alike * size) * self.alike if size else 0
            return [part for _ in range(number) for part in _equal(size, self.most)]
        if (self.full or (drop_last and self.micro_batch_size is None)) and available >= size:
            pieces = [size] * (available // size)
        else:
            pieces = _nearly_equal(available, size)
        return pieces if self.most is None else [part for piece in pieces for part in _nearly_equal(piece, self.most)]

    def choose(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Those of batches that came whole which are alike, if they have to be."""
        if not self.alike or not batches:
            return list(batches)
        [(size, number)] = Counter(batch.size for batch in batches).most_common(1)
        of_one_size = [batch for batch in batches if batch.size == size][: number // self.alike * self.alike]
        return [replace(batch, index=index) for index, batch in enumerate(of_one_size)]

    def _size(self, batch_size: int | None) -> int:
        return self.micro_batch_size or batch_size or 1


def pieces(items: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive pieces of a sequence.

    Example:
        >>> list(pieces(range(5), [2, 1]))
        [[0, 1], [2]]
    """
    start = 0
    for size in sizes:
        yield list(items[start : start + size])
        start += size


def _nearly_equal(total: int, most: int) -> list[int]:
    number = math.ceil(total / most)
    return [total // number + (index < total % number) for index in range(number)] if number else []


def _equal(total: int, most: int | None) -> list[int]:
    """As few equal parts as can be."""
    number = next(n for n in range(math.ceil(total / (most or total)), total + 1) if total % n == 0)
    return [total // number] * number
