"""HSIC_1 of the layers of a network on one micro-batch: from Gram matrices, or, where all are narrow, from features.

With the squared norms k and l of the rows of centred features X and Y

    n (n - 3) HSIC_1(X, Y) = |X^T Y|^2 - n k.l / (n - 2) + sum(k) sum(l) / ((n - 1) (n - 2)),

which takes n d_x d_y multiplications, where Gram matrices take n^2 once they are formed, and as many numbers to read.
A wide layer needs them, and in its pairs those of all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_probes.functional.cka import (
    centre,
    check_samples,
    hsic,
    permutations,
    self_hsic,
    shuffled_null,
    u_center,
)


class BatchHSIC(NamedTuple):
    """HSIC_1 of layer pairs on one micro-batch, float64.

    Attributes:
        samples: n.
        cross: (1 + P, ..., L, M), of the samples in order, then with those of the column layers permuted.
        rows: (..., L), of each row layer with itself.
        columns: (..., M), of each column layer with itself.
    """

    samples: int
    cross: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class NarrowLayers:
    """Centred features of several layers, side by side.

    Args:
        features: (n, sum of widths), float64.
        widths: Number of features of each layer.
    """

    features: Tensor
    widths: tuple[int, ...]

    @classmethod
    def of(cls, layers: Iterable[Tensor]) -> NarrowLayers:
        """From (n, d) features of each layer, as they are."""
        layers = [*layers]
        centred = torch.cat([centre(features.to(torch.float64)) for features in layers], 1)
        return cls(centred, tuple(features.shape[1] for features in layers))

    def to(self, device: torch.device) -> NarrowLayers:
        """The same on a device."""
        return NarrowLayers(self.features.to(device), self.widths)


Layers: TypeAlias = Tensor | NarrowLayers
"""Gram matrices, (L, n, n), or features."""


def features_are_cheaper(widths: Sequence[int], samples: int) -> bool:
    """Whether features take less time than Gram matrices, by what both took on CPU.

    Example:
        >>> features_are_cheaper([32, 32, 10], samples=256), features_are_cheaper([512, 32, 10], samples=256)
        (True, False)
    """
    return samples >= 256 and sum(widths) ** 2 <= 32 * samples * len(widths)


def hsic_of_grams(
    rows: Tensor, columns: Tensor | None = None, generator: torch.Generator | None = None, num_permutations: int = 0
) -> BatchHSIC:
    """HSIC_1 from Gram matrices.

    Args:
        rows: (..., L, n, n), raw or U-centred.
        columns: (..., M, n, n) of the same samples; the rows themselves if left out.
        generator: Draws the permutations.
        num_permutations: P.

    Raises:
        ValueError: With fewer than four samples, unequal numbers of them, or no generator for permutations.
    """
    rows = u_center(rows)
    columns = rows if columns is None else u_center(columns)
    cross = hsic(rows, columns)[None]
    if num_permutations:
        if generator is None:
            raise ValueError(f"num_permutations={num_permutations} needs update(..., generator=...).")
        cross = torch.cat([cross, shuffled_null(rows, columns, generator, num_permutations)])
    own = self_hsic(rows)
    return BatchHSIC(rows.shape[-1], cross, own, own if columns is rows else self_hsic(columns))


def all_pairs(layers: Layers, generator: torch.Generator, num_permutations: int) -> BatchHSIC:
    """Each layer with each other, L = M.

    Example:
        >>> layers = NarrowLayers.of([torch.randn(16, 3), torch.randn(16, 2)])
        >>> all_pairs(layers, torch.Generator(), num_permutations=5).cross.shape
        torch.Size([6, 2, 2])
    """
    if isinstance(layers, Tensor):
        return hsic_of_grams(layers, None, generator, num_permutations)
    n = len(layers.features)
    check_samples(n)
    orders = permutations(n, num_permutations, generator, layers.features.device)
    orders = [torch.arange(n, device=layers.features.device), *orders]
    cross = torch.stack([_of_features(layers, layers, order) for order in orders])
    own = cross[0].diagonal()
    return BatchHSIC(n, cross, own, own)


def counterparts(layers: Layers, others: Layers) -> BatchHSIC:
    """Each layer with the one in the same place among others, as L matrices of one row and column."""
    if isinstance(layers, Tensor) and isinstance(others, Tensor):
        return hsic_of_grams(layers[:, None], others[:, None])
    assert isinstance(layers, NarrowLayers)
    assert isinstance(others, NarrowLayers)
    n = len(layers.features)
    check_samples(n)
    cross, rows, columns = (
        _of_features(a, b).diagonal() for a, b in ((layers, others), (layers, layers), (others, others))
    )
    return BatchHSIC(n, cross[None, :, None, None], rows[:, None], columns[:, None])


def _of_features(rows: NarrowLayers, columns: NarrowLayers, order: Tensor | None = None) -> Tensor:
    """(L, M), with the samples of the columns in another order."""
    x = rows.features
    y = columns.features if order is None else columns.features[order]
    n = len(x)
    squares = _block_sums(_block_sums((x.mT @ y).square(), columns.widths).mT, rows.widths).mT
    k, l = _block_sums(x.square(), rows.widths), _block_sums(y.square(), columns.widths)  # noqa: E741
    total = squares - k.mT @ l * (n / (n - 2)) + k.sum(0)[:, None] * l.sum(0) / ((n - 1) * (n - 2))
    return total / (n * (n - 3))


def _block_sums(matrix: Tensor, widths: Sequence[int]) -> Tensor:
    """Sums over runs of columns: a layer's NaN stays its own."""
    return torch.stack([block.sum(1) for block in matrix.split_with_sizes([*widths], 1)], 1)
