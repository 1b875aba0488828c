"""Probe data: a fixed set of samples, drawn once without touching the user's loader, sampler, dataset or generators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.data import DataLoader, Dataset

from lightning_probes.probing.data.batches import Deferred, MicroBatch, ProbeSet
from lightning_probes.probing.data.cutting import Cutting
from lightning_probes.probing.data.loaders import read_source
from lightning_probes.probing.isolation.seeding import isolated_rng, seed_generators

__all__ = ["DataSource", "DataSources", "Drawing", "MicroBatch", "ProbeSet"]

DataSource: TypeAlias = Literal["train", "val"] | DataLoader[Any] | Dataset[Any]
DataSources: TypeAlias = Sequence[DataSource] | Mapping[str, DataSource]


@dataclass(frozen=True)
class Drawing(Cutting):
    """How to draw a probe set; see `Cutting` for the arguments."""

    def draw(self, loaders: Any, mode: str = "max_size_cycle") -> ProbeSet:
        """Draw a set from a loader, or from a collection of loaders combined in the same way as in Lightning.

        Args:
            loaders: A DataLoader, a Dataset, another iterable of batches, or a list, tuple or dict of those.
            mode: The `CombinedLoader` mode of a collection. "sequential" splits `num_samples` between the loaders.

        Returns:
            This process's micro-batches.

        Raises:
            MisconfigurationException: If the data is empty, or can't be read without disturbing training; the message
            names `data`.

        Example:
            >>> probe_set = Drawing(num_samples=10, micro_batch_size=4).draw(DataLoader(range(100), batch_size=32))
            >>> probe_set.sizes, len(probe_set.batches[0].content)
            ([4, 3, 3], 4)
        """
        batches = self.read(loaders, mode)
        if not batches:
            raise MisconfigurationException("the probe data is empty: pass a loader with at least one sample as data=")
        mine = [batch for batch in batches if batch.index % self.world_size == self.rank]
        return ProbeSet(mine, [batch.size for batch in batches], batches[0].ready)

    def read(self, loaders: Any, mode: str = "max_size_cycle") -> list[MicroBatch]:
        """All micro-batches of a set, possibly none; those that only other processes need have no content.

        See `draw`.
        """
        if hasattr(loaders, "iterables") and hasattr(loaders, "_mode"):  # a CombinedLoader of either Lightning package
            loaders, mode = loaders.iterables, loaders._mode
        with isolated_rng():
            seed_generators(self.seed)
            return read_source(loaders, self) if is_source(loaders) else _recombine(loaders, mode, self)


def is_source(loaders: Any) -> bool:
    """Whether this is a source of batches, not a collection of sources."""
    if not isinstance(loaders, (list, tuple, dict)):
        return True
    if isinstance(loaders, dict):
        return False
    return any(isinstance(leaf, (Tensor, np.ndarray, int, float, str)) for leaf in tree_leaves(loaders))


@dataclass(frozen=True)
class _Together(Deferred):
    """A batch of several loaders.

    Args:
        parts: The batch of each loader, or its `Deferred`.
        structure: The structure of the collection in which the parts are combined.
    """

    parts: Sequence[Any]
    structure: Any

    @property
    def is_deferred(self) -> bool:
        """Whether a part is not kept in memory."""
        return any(isinstance(part, Deferred) for part in self.parts)

    def read(self) -> Any:
        """Read the parts."""
        return self.structure.unflatten([part.read() if isinstance(part, Deferred) else part for part in self.parts])


def _recombine(loaders: Any, mode: Any, drawing: Drawing) -> list[MicroBatch]:
    sources, structure = tree_flatten(loaders, is_leaf=is_source)
    share = math.ceil(drawing.num_samples / max(1, len(sources))) if mode == "sequential" else drawing.num_samples
    # Any batch may be combined with any other, so every process reads all of them.
    whole = replace(drawing, num_samples=share, rank=0, world_size=1)
    parts = [read_source(source, whole) for source in sources]
    if mode == "sequential":
        batches = [replace(batch, index=index) for index, batch in enumerate(itertools.chain.from_iterable(parts))]
        return drawing.choose(batches)
    batches = []
    # CombinedLoader gets ranges of indices, because it would treat a list of batches as another collection of loaders.
    for index, (numbers, _, _) in enumerate(CombinedLoader([range(len(part)) for part in parts], mode)):
        items = [None if number is None else part[number] for number, part in zip(numbers, parts, strict=True)]
        size = max(item.size for item in items if item is not None)
        content = _Together([None if item is None else item.content for item in items], structure)
        batches.append(MicroBatch(index, size, content if content.is_deferred else content.read()))
    return drawing.choose(batches)
