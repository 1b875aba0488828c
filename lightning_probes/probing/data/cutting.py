"""The number of samples to draw, and the sizes of their micro-batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lightning_probes.probing.data.batches import MicroBatch


@dataclass(frozen=True)
class Cutting:
    """The number of samples to draw, and how to split them into micro-batches.

    Args:
        num_samples: Number of samples to draw; all samples if there are fewer.
        micro_batch_size: Maximum number of samples in one forward pass; None for the loader's batch size. Micro-batches
            have nearly equal sizes, so that the last one is not a rest of one or two samples. If the loader's batch
            size is used and the loader drops its last incomplete batch, so does the probe.
        seed: Decides which samples are drawn.
        rank: Rank of this process.
        world_size: Number of processes that share the set.
        limit: Use only this many first samples of the loader (`Trainer(overfit_batches=...)`); it counts batches if the
            loader has no batch size.
        most: Split every micro-batch further, into parts of at most this many samples.
        full: Use only micro-batches of the loader's own size, even if that needs more samples, provided there are
            enough samples for one.
        alike: Use micro-batches of equal size, and a multiple of this many of them; 0 for no such requirement.

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
        """Number of samples to request from a loader."""
        least = self._size(batch_size) * max(1, self.alike) if self.full else 0
        return max(self.num_samples, least)

    def sizes(self, available: int, batch_size: int | None = None, drop_last: bool = False) -> list[int]:
        """Sizes of the micro-batches.

        Args:
            available: Number of samples to split.
            batch_size: The loader's batch size.
            drop_last: Whether the loader drops its last incomplete batch.
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
        """Select from whole batches those of the most common size, if all must have one size."""
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
    """The smallest possible number of equal parts."""
    number = next(n for n in range(math.ceil(total / (most or total)), total + 1) if total % n == 0)
    return [total // number] * number
