"""Values of every sample in every process, as medians over samples need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_probes.functional.wide import widest
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray


def of_every_sample(
    view: ModelView, names: Sequence[str], found: Mapping[int, Mapping[str, Tensor]], width: int
) -> dict[str, FloatArray]:
    """Gather values of samples over micro-batches and processes.

    Args:
        view: The model.
        names: Names of the places, the same in every process.
        found: For each of this process's micro-batches, by index: for each place that ran, (width, samples).
        width: How many values a sample has at a place.

    Returns:
        For each name (width, samples): the values of those samples in whose pass the place ran.
    """
    sizes = view.probe_set().sizes
    packed = {}
    for batch in view.batches():
        values = torch.zeros(len(names), 1 + width, max(sizes), dtype=widest(view.device), device=view.device)
        for place, name in enumerate(names):
            if name in found[batch.index]:
                values[place, 0, : batch.size] = 1
                values[place, 1:, : batch.size] = found[batch.index][name]
        packed[batch.index] = values
    everything = view.of_all(packed, shape=(len(names), 1 + width, max(sizes))).numpy()
    by_name = np.moveaxis(everything, 0, 2).reshape(len(names), 1 + width, -1)
    return {name: values[1:, values[0] == 1] for name, values in zip(names, by_name, strict=True)}


def median(values: FloatArray, defined: FloatArray | bool = True) -> float | None:
    """Median of the defined values; None if there are none."""
    kept = values[np.broadcast_to(np.asarray(defined, dtype=bool), values.shape)]
    return float(np.median(kept)) if kept.size else None
