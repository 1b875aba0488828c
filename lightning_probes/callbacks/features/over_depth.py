"""Results over the depth of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_probes.callbacks.features.reading_off import ReadOff
from lightning_probes.probing.layers import layer_keys
from lightning_probes.results import Curve, Heatmap, Result, Scalar


def over_depth(read: ReadOff, names: Sequence[str], step: int, what: str) -> Iterator[Result]:
    """The picture over depth and steps, and the numbers that compare layers with each other and with chance.

    Args:
        read: What can be read off each layer.
        names: The layers, in forward order.
        step: The present step.
        what: What the scores are.
    """
    score, error = read.score, read.standard_error
    depth = np.linspace(0, 1, len(names)) if len(names) > 1 else np.ones(1)
    best = int(np.where(np.isnan(score), -np.inf, score).argmax())
    yield Heatmap("accuracy", score[:, None], names, (str(step),))
    yield Curve("depth", depth, score, "depth (0 = first layer, 1 = last)", f"{what} (no unit)", error)
    yield Scalar("last", score[-1], error[-1], detail=True)
    yield Scalar("best", score[best], error[best])
    yield Scalar("best_depth", depth[best], detail=True)
    yield Scalar("null_p95", float(np.quantile(read.null, 0.95)), detail=True)
    yield Scalar("chance", read.chance, detail=True)
    if read.head is not None:
        yield Scalar("head", read.head, detail=True)
        yield Scalar("gap", score[best] - read.head, detail=True)


def by_layer(read: ReadOff, names: Sequence[str]) -> Iterator[Scalar]:
    """The score of each layer."""
    keys = layer_keys(names, errors=True)
    for name, score, error in zip(names, read.score, read.standard_error, strict=True):
        yield Scalar(f"layer/{keys[name]}", score, error)
