"""Where in an order of its own a source of samples stands, so that every draw of a run begins at the same place.

Training moves on what it reads from: a stream that counts its samples, a loader or sampler with a `state_dict`, which a
resumed run sets to where the broken one stopped. The first draw finds it at some place, and later ones go back there.
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

from lightning_probes.probing.data.drawing import is_source
from lightning_probes.probing.data.loaders import iterates_as_usual
from lightning_probes.probing.data.reading import within_budget
from lightning_probes.probing.isolation.copying import Copier, refuse

# Larger arrays are data and no place.
_COPIED_BYTES = 2**24

# How much of an array is looked at.
_SEEN = 2**16

Fingerprint = list[tuple[list[int], float, float]]


def kept(loaders: Any, places: Sequence[Any] = ()) -> tuple[Any, list[Any]]:
    """Copies of what gives samples in an order of its own, which training does not move on.

    Args:
        loaders: See `Drawing.draw`.
        places: The places at the first draw of the run; by default where the loaders stand now.

    Returns:
        Loaders to draw from, and their places: a `state_dict` for each that has one, else None.
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
    # A loader that keeps its iterator and has none yet would begin to iterate if it were asked for its place.
    begun = isinstance(original, DataLoader) or getattr(original, "_iterator", original) is not None
    if stateful and place is None and begun:
        place = original.state_dict()
    copier = _copier()
    try:
        own = copier(original)
        collate = copier(source.collate_fn) if part else None
        if stateful and place is not None and own is not original:
            own.load_state_dict(copy.deepcopy(place))
    except Exception:  # then it is read from where it stands, in another process if need be
        return source, place
    if not part:
        return own, place
    loader = copy.copy(source)
    vars(loader).update({part: own, "collate_fn": collate})  # which a loader refuses to have set
    return loader, place if _is_plain(place) else None


def _is_plain(place: Any) -> bool:
    """Whether a checkpoint that holds this can still be loaded with `weights_only=True`."""
    return {type(leaf) for leaf in tree_leaves(place)} <= {bool, int, float, str, bytes, type(None), Tensor}


def _what_has_a_place(source: Any) -> str | None:
    """The attribute of a source that may have one; "" for the source itself, None if nothing has."""
    if isinstance(source, DataLoader) and iterates_as_usual(source):
        if isinstance(source.dataset, IterableDataset):
            return "dataset" if source.num_workers == 0 else None  # workers have copies of their own
        part = "sampler" if source.batch_size is not None or source.batch_sampler is None else "batch_sampler"
        return part if hasattr(getattr(source, part), "load_state_dict") else None
    if isinstance(source, (list, tuple, str, Tensor, np.ndarray)) or hasattr(source, "__getitem__"):
        return None
    return "" if not isinstance(source, Dataset) or isinstance(source, IterableDataset) else None


def _copier() -> Copier:
    """Of everything but map-style data."""
    within = within_budget(_COPIED_BYTES)

    def stand_in(value: Any, copier: Copier) -> Any:
        data = isinstance(value, Dataset) and not isinstance(value, IterableDataset)
        return value if data else within(value, copier)

    return Copier(stand_in=stand_in, otherwise=refuse)


def fingerprint(batch: Any) -> Fingerprint:
    """A few numbers of every tensor and array in a batch, by which it is known again.

    Example:
        >>> fingerprint(torch.tensor([1.0, 2.0])) == fingerprint(torch.tensor([2.0, 1.0]))
        False
    """
    copier = Copier()  # which finds its way into any object
    copier(batch)
    return [found for _, copied in copier.made if (found := _numbers(copied)) is not None]


def _numbers(value: Any) -> tuple[list[int], float, float] | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value).astype(np.float64))
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested or value.is_complex():
        return None
    flat = value.detach().flatten()[:_SEEN].cpu().double().nan_to_num(0.0, 0.0, 0.0)
    weights = torch.arange(1, flat.numel() + 1, dtype=torch.float64).cos()
    return list(value.shape), float(flat @ weights), float(flat.norm())


def alike(first: Fingerprint, second: Fingerprint) -> bool:
    """Whether two batches are the same, up to the rounding of another machine."""
    return len(first) == len(second) and all(
        list(shape) == list(other_shape)
        and math.isclose(norm, other_norm, rel_tol=1e-3, abs_tol=1e-12)
        and abs(value - other) <= 1e-3 * norm + 1e-12
        for (shape, value, norm), (other_shape, other, other_norm) in zip(first, second, strict=True)
    )


def same_samples(first: Mapping[str, Fingerprint], second: Mapping[str, Fingerprint]) -> bool:
    """Whether probe sets begin with the same micro-batch."""
    return all(alike(first[name], second[name]) for name in first.keys() & second.keys())
