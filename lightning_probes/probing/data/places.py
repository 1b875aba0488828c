"""The position of a source that gives samples in its own order, so that every draw of a run starts at the same one.

Training advances such sources: a stream that counts its samples, or a loader or sampler with a `state_dict`. A resumed
run sets the latter to the position of the interrupted run. The position at the first draw is kept, and later draws go
back to it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_probes.probing.data.contents import arrays_in
from lightning_probes.probing.data.drawing import is_source
from lightning_probes.probing.data.loaders import iterates_as_usual
from lightning_probes.probing.data.reading import within_budget
from lightning_probes.probing.isolation.copying import Copier, refuse

# Larger arrays are data, not a position.
_COPIED_BYTES = 2**24

# Number of elements of an array that enter a fingerprint.
_SEEN = 2**16

Fingerprint = list[tuple[list[int], float, float]]


def kept(loaders: Any, places: Sequence[Any] = ()) -> tuple[Any, list[Any]]:
    """Copies of sources that give samples in their own order; training does not advance the copies.

    Args:
        loaders: See `Drawing.draw`.
        places: The positions at the first draw of the run; by default the current positions of the loaders.

    Returns:
        Loaders to draw from, and their positions: a `state_dict` for each source that has one, otherwise None.
    """
    sources, structure = tree_flatten(loaders, is_leaf=is_source)
    known = list(places) if len(places) == len(sources) else [None] * len(sources)
    pairs = [_kept(source, place) for source, place in zip(sources, known, strict=True)]
    return structure.unflatten([source for source, _ in pairs]), [place for _, place in pairs]


def _kept(source: Any, place: Any) -> tuple[Any, Any]:
    part = _what_has_a_place(source)
    if part is None:
        return source, None
    original = getattr(source, part) if part else source
    stateful = hasattr(original, "state_dict") and hasattr(original, "load_state_dict")
    # A loader that keeps its iterator, but has not created it yet, would start to iterate in its state_dict().
    begun = isinstance(original, DataLoader) or getattr(original, "_iterator", original) is not None
    if stateful and place is None and begun:
        place = original.state_dict()
    copier = _copier()
    try:
        own = copier(original)
        collate = copier(source.collate_fn) if part else None
        if stateful and place is not None and own is not original:
            own.load_state_dict(copy.deepcopy(place))
    except Exception:  # then it is read from its current position, in another process if necessary
        return source, place
    if not part:
        return own, place
    loader = copy.copy(source)
    vars(loader).update({part: own, "collate_fn": collate})  # a loader's own __setattr__ refuses this
    return loader, place if _is_loadable(place) else None


def _is_loadable(place: Any) -> bool:
    """Whether a checkpoint that holds this can still be loaded with `weights_only=True`."""
    return {type(leaf) for leaf in tree_leaves(place)} <= {bool, int, float, str, bytes, type(None), Tensor}


def _what_has_a_place(source: Any) -> str | None:
    """The attribute of a source that may have a position; "" for the source itself, None if there is none."""
    if isinstance(source, DataLoader) and iterates_as_usual(source):
        if isinstance(source.dataset, IterableDataset):
            return "dataset" if source.num_workers == 0 else None  # workers have their own copies
        part = "sampler" if source.batch_size is not None or source.batch_sampler is None else "batch_sampler"
        return part if hasattr(getattr(source, part), "load_state_dict") else None
    if isinstance(source, (list, tuple, str, Tensor, np.ndarray)) or hasattr(source, "__getitem__"):
        return None
    return "" if not isinstance(source, Dataset) or isinstance(source, IterableDataset) else None


def _copier() -> Copier:
    """A copier that shares map-style datasets and copies everything else."""
    within = within_budget(_COPIED_BYTES)

    def stand_in(value: Any, copier: Copier) -> Any:
        data = isinstance(value, Dataset) and not isinstance(value, IterableDataset)
        return value if data else within(value, copier)

    return Copier(stand_in=stand_in, otherwise=refuse)


def fingerprint(batch: Any) -> Fingerprint:
    """A few numbers of every tensor and array in a batch, to recognise it later.

    Example:
        >>> fingerprint(torch.tensor([1.0, 2.0])) == fingerprint(torch.tensor([2.0, 1.0]))
        False
    """
    return [found for array in arrays_in(batch) if (found := _numbers(array)) is not None]


def _numbers(value: Any) -> tuple[list[int], float, float] | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value).astype(np.float64))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested or value.is_complex():
        return None
    flat = value.detach().flatten()[:_SEEN].cpu().double().nan_to_num(0.0, 0.0, 0.0)
    weights = torch.arange(1, flat.numel() + 1, dtype=torch.float64).cos()
    return list(value.shape), float(flat @ weights), float(flat.norm())


def alike(first: Fingerprint, second: Fingerprint) -> bool:
    """Whether two batches are the same up to rounding, which differs between machines."""
    return len(first) == len(second) and all(
        list(shape) == list(other_shape)
        and math.isclose(norm, other_norm, rel_tol=1e-3, abs_tol=1e-12)
        and abs(value - other) <= 1e-3 * norm + 1e-12
        for (shape, value, norm), (other_shape, other, other_norm) in zip(first, second, strict=True)
    )


def same_samples(first: Mapping[str, Fingerprint], second: Mapping[str, Fingerprint]) -> bool:
    """Whether probe sets have the same first micro-batch."""
    return all(alike(first[name], second[name]) for name in first.keys() & second.keys())
