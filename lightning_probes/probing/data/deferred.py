"""Micro-batches of a large probe set, read again whenever a pass needs them instead of being kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.data.batches import Deferred
from lightning_probes.probing.data.contents import bytes_in, checksum
from lightning_probes.probing.data.reading import Batches, copied, read
from lightning_probes.probing.isolation.seeding import isolated_rng
from lightning_probes.probing.isolation.snapshot import Snapshot, with_values_of_now

# The largest probe set, in bytes, that a process keeps in memory. Reading images again takes longer than most passes,
# so the limit is chosen such that the default of 512 samples is kept, up to a size of 3 x 224 x 224 numbers each.
LARGEST_KEPT = 2**29


def read_or_defer(reader: Batches) -> Iterator[Any]:
    """The contents of all batches, as from `read`; or a `Deferred` for each batch, if they need too much memory.

    They stay in memory anyway if this process can't read them, or if reading them again gives other contents.
    """
    contents = read(reader)
    for first in contents:
        size = bytes_in(first) * len(reader.plan)
        deferred = _defer(reader, checksum(first)) if size > LARGEST_KEPT else None
        if deferred is None:
            yield first
            yield from contents
        else:
            yield from deferred


def _defer(reader: Batches, expected: int) -> list[Deferred] | None:
    if reader.workers.set_up:
        return None
    try:
        dataset = PrivateDataset(reader)
        checksums = [checksum(dataset.read(number, key)) for number, key in reader.plan]
        first = checksum(dataset.read(*reader.plan[0]))
    except Exception:  # `read` reports it, or reads in another process
        return None
    if {checksums[0], first} != {expected}:
        return None
    return [_Again(dataset, number, key, found) for (number, key), found in zip(reader.plan, checksums, strict=True)]


class PrivateDataset:
    """A private copy of a dataset. Every batch is read from the state that the dataset has now."""

    def __init__(self, reader: Batches) -> None:
        self._own = replace(copied(reader), plan=())
        self._snapshot = Snapshot(with_values_of_now(self._own.made or ()))

    def read(self, number: int, key: Any) -> Any:
        """Read a batch, see `Batches.plan`. The generators of the process do not change."""
        with isolated_rng():
            try:
                return self._own.batch(number, key)
            finally:
                self._snapshot.restore()  # so that the dataset does not keep the samples it has read


@dataclass(frozen=True)
class _Again(Deferred):
    dataset: PrivateDataset
    number: int
    key: Any
    checksum: int

    def read(self) -> Any:
        content = self.dataset.read(self.number, self.key)
        if checksum(content) != self.checksum:
            raise MisconfigurationException(
                f"micro-batch {self.number} of the probe data has changed since the data was drawn: pass data= "
                "whose samples stay the same, or a smaller num_samples=, so that the samples are kept in memory"
            )
        return content
