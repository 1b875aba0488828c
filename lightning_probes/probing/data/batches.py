"""What a probe measures on: micro-batches, and this process's share of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MicroBatch:
    """A collated batch of probe samples, kept as the user's `collate_fn` made it.

    Attributes:
        index: Its number in the whole probe set, the same however many processes share the set. Seeds every pass.
        size: Number of samples in it.
        content: The batch.
        in_training: Number of samples in a batch of the loader that it was cut from; None where it came whole.
        number: Seeds its passes, and is the `batch_idx` of `training_step`. It differs from `index` where batches
            before it were left out.
    """

    index: int
    size: int
    content: Any
    in_training: int | None = None
    number: int | None = None

    @property
    def key(self) -> int:
        """`number`, or else `index`."""
        return self.index if self.number is None else self.number


@dataclass(frozen=True)
class ProbeSet:
    """This process's share of a probe set, and the sizes of the whole.

    Attributes:
        batches: This process's micro-batches, in order.
        sizes: Number of samples of every micro-batch of the set, on whichever process.
        first: The first micro-batch of the set, which every process has, to try things on. Where the processes read
            data that each shards by itself, the first of its own.
    """

    batches: Sequence[MicroBatch]
    sizes: Sequence[int]
    first: MicroBatch

    @property
    def num_samples(self) -> int:
        """Samples in the whole set."""
        return sum(self.sizes)
