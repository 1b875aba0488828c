"""Rows of features of a bounded width: averages of each channel over cells of positions or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from lightning_probes.functional.features.feature_matrix import features_of

TokenPooling: TypeAlias = Literal["auto", "mean", "cls"]


@dataclass(frozen=True)
class Pooling:
    """Averages each channel over the cells of a grid. It is fitted to a layer's first output, and the same for others.

    Args:
        axis: The axis of the channels.
        cells: Number of cells along each other axis but the first.
        first_token: Whether to take the first token instead.

    Example:
        >>> pooling = Pooling.fit(torch.zeros(8, 32, 14, 14), axis=1, tokens="auto", most=256)
        >>> pooling.cells, pooling(torch.zeros(8, 32, 14, 14)).shape
        ((2, 2), torch.Size([8, 128]))
    """

    axis: int
    cells: tuple[int, ...]
    first_token: bool = False

    @classmethod
    def fit(cls, features: Tensor, axis: int, tokens: TokenPooling, most: int) -> Pooling:
        """The finest grid with equal sides that gives at most `most` features; one cell if there are more channels.

        Args:
            features: (samples, ...), an output of the layer.
            axis: The axis of the channels.
            tokens: "auto" for the grid, "mean" for one cell, "cls" for the first token of (samples, tokens, channels).
            most: The largest number of features, unless there are more channels.
        """
        if features.ndim < 3:
            return cls(axis, ())
        extents = [extent for other, extent in enumerate(features.shape) if other not in (0, axis)]
        first_token = tokens == "cls" and features.ndim == 3 and axis == 2
        budget = 1 if tokens == "mean" else most // max(1, features.shape[axis])
        return cls(axis, _cells(extents, budget), first_token)

    def __call__(self, output: object) -> Tensor:
        """(samples, width), in single precision at least. See `features_of` for outputs that are no tensors.

        Raises:
            ValueError: If the output has another number of axes than the first one had.
        """
        features = features_of(output)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        if max(0, features.ndim - 2) != len(self.cells):
            raise ValueError(
                f"a layer returned {features.ndim} axes after {len(self.cells) + 2} in an earlier pass: leave that "
                "layer out of `layers`"
            )
        if not self.cells:
            return features.reshape(len(features), -1)
        if self.first_token:
            return features[:, 0]
        features = features.movedim(self.axis, 1)
        for place, cells in enumerate(self.cells, 2):
            features = _averages(features, place, cells)
        return features.flatten(1)


def _averages(features: Tensor, axis: int, cells: int) -> Tensor:
    """Averages over an axis in cells; the averages over boxes are averages of averages."""
    if features.shape[axis] == cells:
        return features
    if cells == 1:
        return features.mean(axis, keepdim=True)
    last = features.movedim(axis, -1)
    rows = last.reshape(-1, 1, last.shape[-1])
    return adaptive_avg_pool1d(rows, cells).reshape(*last.shape[:-1], cells).movedim(-1, axis)


def _cells(extents: Sequence[int], budget: int) -> tuple[int, ...]:
    """Cells along each axis: equal numbers, more only where another axis is too short. Their product fits the budget.

    Example:
        >>> _cells([14, 14], 8), _cells([1, 20], 8), _cells([100], 12)
        ((2, 2), (1, 8), (12,))
    """
    chosen: dict[int, int] = {}
    for number, axis in enumerate(sorted(range(len(extents)), key=lambda axis: extents[axis])):
        left = len(extents) - number
        side = max(k for k in range(1, max(budget, 1) + 1) if k == 1 or k**left <= budget)
        chosen[axis] = min(side, extents[axis])
        budget = budget // extents[axis] if extents[axis] < side else side ** (left - 1)
    return tuple(chosen[axis] for axis in range(len(extents)))
