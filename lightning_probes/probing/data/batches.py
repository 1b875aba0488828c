"""The data of a probe: micro-batches, and the share of this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload


class Deferred(ABC):
    """The content of a micro-batch that is not kept in memory."""

    @abstractmethod
    def read(self) -> Any:
        """Read the content, the same each time."""


@dataclass(frozen=True)
class MicroBatch:
    """A collated batch of probe samples, kept as the user's `collate_fn` made it.

    Attributes:
        index: Its number in the whole probe set; does not depend on the number of processes. Seeds every pass.
        size: Number of samples in it.
        content: The batch; in `ProbeSet.plan` it may be a `Deferred`.
        in_training: Number of samples in a training batch of the loader it was cut from; None for a whole batch.
        number: Seeds its passes, and is the `batch_idx` of `training_step`. It differs from `index` if earlier batches
            were left out.
        transferred: Whether it has passed the hooks that transfer a batch, and is on the device.
    """

    index: int
    size: int
    content: Any
    in_training: int | None = None
    number: int | None = None
    transferred: bool = False

    @property
    def key(self) -> int:
        """`number` if set, otherwise `index`."""
        return self.index if self.number is None else self.number

    @property
    def ready(self) -> MicroBatch:
        """The micro-batch with its content read."""
        return replace(self, content=self.content.read()) if isinstance(self.content, Deferred) else self


class ReadyBatches(Sequence[MicroBatch]):
    """Micro-batches whose content is read on access. It stays in memory while the micro-batch is referenced.

    Args:
        plan: The micro-batches, with content or a `Deferred`.
    """

    def __init__(self, plan: Sequence[MicroBatch]) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | Sequence[MicroBatch]:
        return ReadyBatches(self._plan[index]) if isinstance(index, slice) else self._plan[index].ready


@dataclass(frozen=True)
class ProbeSet:
    """This process's share of a probe set, and the sizes of all micro-batches.

    Attributes:
        plan: This process's micro-batches, in order; those of a large set have no content in memory.
        sizes: Number of samples of every micro-batch of the set, on all processes.
        first: The first micro-batch of the set, for checks; every process has it. If each process reads its own shard
            of the data, the first micro-batch of its shard.
    """

    plan: Sequence[MicroBatch]
    sizes: Sequence[int]
    first: MicroBatch

    @property
    def batches(self) -> Sequence[MicroBatch]:
        """This process's micro-batches, in order. Those of a large set are read on access."""
        return ReadyBatches(self.plan)

    @property
    def is_deferred(self) -> bool:
        """Whether the set is too large to be kept in memory."""
        return any(isinstance(batch.content, Deferred) for batch in self.plan)

    @property
    def num_samples(self) -> int:
        """Samples in the whole set."""
        return sum(self.sizes)
