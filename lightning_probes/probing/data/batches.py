"""The data of a probe: micro-batches, and the share of this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MicroBatch:
    """A collated batch of probe samples, kept as the user's `collate_fn` made it.

    Attributes:
        index: Its number in the whole probe set; does not depend on the number of processes. Seeds every pass.
        size: Number of samples in it.
        content: The batch.
        in_training: Number of samples in a training batch of the loader it was cut from; None for a whole batch.
        number: Seeds its passes, and is the `batch_idx` of `training_step`. It differs from `index` if earlier batches
            were left out.
    """

    index: int
    size: int
    content: Any
    in_training: int | None = None
    number: int | None = None

    @property
    def key(self) -> int:
        """`number` if set, otherwise `index`."""
        return self.index if self.number is None else self.number


@dataclass(frozen=True)
class ProbeSet:
    """This process's share of a probe set, and the sizes of all micro-batches.

    Attributes:
        batches: This process's micro-batches, in order.
        sizes: Number of samples of every micro-batch of the set, on all processes.
        first: The first micro-batch of the set, for checks; every process has it. If each process reads its own shard
            of the data, the first micro-batch of its shard.
    """

    batches: Sequence[MicroBatch]
    sizes: Sequence[int]
    first: MicroBatch

    @property
    def num_samples(self) -> int:
        """Samples in the whole set."""
        return sum(self.sizes)
