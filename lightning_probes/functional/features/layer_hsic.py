"""HSIC_1 of the layers of a network on one micro-batch: from Gram matrices, or from features if the layers are narrow.

With the squared norms k and l of the rows of centred features X and Y

    n (n - 3) HSIC_1(X, Y) = |X^T Y|^2 - n k.l / (n - 2) + sum(k) sum(l) / ((n - 1) (n - 2)).

This takes n d_x d_y multiplications. Gram matrices take n^2 multiplications and memory reads per pair once they exist.
A layer that is much wider than all others together needs a Gram matrix. Its pairs then need the Gram matrices of all
layers, so that using features for the narrow pairs would save nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_probes.functional.features.cka import (
    centre,
    check_samples,
    hsic,
    linear_gram,
    permutations,
    self_hsic,
    shuffled_null,
    u_center,
)
from lightning_probes.functional.wide import on_host, widest


class BatchHSIC(NamedTuple):
    """HSIC_1 of layer pairs on one micro-batch, in the device's widest dtype.

    Attributes:
        samples: n.
        cross: (1 + P, ..., L, M), first with the samples in order, then with the column layers' samples permuted.
        rows: (..., L), each row layer with itself.
        columns: (..., M), each column layer with itself.
    """

    samples: int
    cross: Tensor
    rows: Tensor
    columns: Tensor


def all_on_host(batches: Sequence[BatchHSIC]) -> list[BatchHSIC]:
    """Several micro-batches in float64 on the CPU, with one device-to-host copy for each field."""
    if not batches:
        return []
    samples, *parts = zip(*batches, strict=True)
    return [BatchHSIC(*batch) for batch in zip(samples, *(on_host(torch.stack(part)) for part in parts), strict=True)]


@dataclass(frozen=True, eq=False)
class NarrowLayers:
    """Centred features of several layers, concatenated along the feature axis.

    Args:
        features: (n, sum of widths), in double precision.
        widths: Number of features of each layer.
    """

    features: Tensor
    widths: tuple[int, ...]

    @classmethod
    def of(cls, layers: Iterable[Tensor]) -> NarrowLayers:
        """From the raw (n, d) features of each layer."""
        layers = [*layers]
        centred = torch.cat([centre(features.to(widest(features.device))) for features in layers], 1)
        return cls(centred, tuple(features.shape[1] for features in layers))

    def to(self, device: torch.device) -> NarrowLayers:
        """A copy on another device."""
        return NarrowLayers(self.features.to(device), self.widths)

    def singly(self) -> list[NarrowLayers]:
        """The layers as separate objects."""
        parts = self.features.split_with_sizes([*self.widths], 1)
        return [NarrowLayers(part, (width,)) for part, width in zip(parts, self.widths, strict=True)]


Layers: TypeAlias = Tensor | NarrowLayers
"""Gram matrices, (L, n, n), or features."""


def features_are_cheaper(widths: Sequence[int], samples: int) -> bool:
    """Whether features take less time than Gram matrices, by measurements on CPU.

    Example:
        >>> features_are_cheaper([32, 32, 10], samples=256), features_are_cheaper([512, 32, 10], samples=256)
        (True, False)
    """
    number = len(widths)
    most = max(samples // 2, 32 * number, number**2 * min(samples, 1024) // 1024)
    return samples >= 256 and sum(widths) ** 2 <= samples * most


@dataclass(frozen=True)
class Form:
    """The form in which layers are compared: as Gram matrices, or as features if these are cheaper.

    Args:
        widths: Number of features of each layer.
        narrow: Whether features are kept.

    Example:
        >>> form = Form.cheapest([3, 2], samples=16, device=torch.device("cpu"))
        >>> form.gather([form.keep(torch.randn(16, 3)), None], samples=16, device=torch.device("cpu")).shape
        torch.Size([2, 16, 16])
    """

    widths: Sequence[int]
    narrow: bool

    @classmethod
    def cheapest(cls, widths: Sequence[int], samples: int, device: torch.device) -> Form:
        """The cheapest form for micro-batches of this number of samples on a device."""
        # HSIC from features needs double precision, because large terms cancel.
        return cls(widths, widest(device) is torch.float64 and features_are_cheaper(widths, samples))

    def keep(self, features: Tensor) -> Tensor:
        """Convert the features of a layer, (n, d), to this form; a copy, because they may be overwritten."""
        return features.clone() if self.narrow else linear_gram(features)

    def gather(self, kept: Sequence[Tensor | None], samples: int, device: torch.device) -> Layers:
        """Combine the results of `keep` to layers that can be compared; NaN for layers that did not run."""
        layers = [
            torch.full((samples, width if self.narrow else samples), torch.nan, device=device)
            if layer is None
            else layer
            for layer, width in zip(kept, self.widths, strict=True)
        ]
        if not self.narrow:
            return torch.stack(layers)
        if features_are_cheaper([layer.shape[1] for layer in layers], samples):
            return NarrowLayers.of(layers)
        return torch.stack([linear_gram(layer) for layer in layers])  # sequences were longer, or samples fewer


def hsic_of_grams(
    rows: Tensor, columns: Tensor | None = None, generator: torch.Generator | None = None, num_permutations: int = 0
) -> BatchHSIC:
    """HSIC_1 from Gram matrices.

    Args:
        rows: (..., L, n, n), raw or U-centred.
        columns: (..., M, n, n) of the same samples; defaults to the rows.
        generator: Draws the permutations.
        num_permutations: P.

    Raises:
        ValueError: If there are fewer than four samples, if their numbers differ, or if a generator is missing.
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
    """HSIC_1 of all pairs of layers, L = M.

    Example:
        >>> layers = NarrowLayers.of([torch.randn(16, 3), torch.randn(16, 2)])
        >>> all_pairs(layers, torch.Generator(), num_permutations=5).cross.shape
        torch.Size([6, 2, 2])
    """
    if isinstance(layers, Tensor):
        return hsic_of_grams(layers, None, generator, num_permutations)
    n, device = len(layers.features), layers.features.device
    check_samples(n)
    orders = [torch.arange(n, device=device), *permutations(n, num_permutations, generator, device)]
    own = _own(layers)
    return _batch(n, torch.stack([_of_features(layers, layers, order) for order in orders]), own, own)


def across(layers: Layers, others: Layers) -> BatchHSIC:
    """HSIC_1 of each layer with each layer of another network.

    Example:
        >>> layers, others = (NarrowLayers.of([torch.randn(16, 3)] * number) for number in (2, 3))
        >>> across(layers, others).cross.shape
        torch.Size([1, 2, 3])
    """
    return hsic_of_grams(_grams(layers), _grams(others))


def counterparts(layers: Layers, others: Layers) -> BatchHSIC:
    """HSIC_1 of each layer with the one at the same position in `others`, as L matrices of shape (1, 1)."""
    if isinstance(layers, Tensor) or isinstance(others, Tensor):
        return hsic_of_grams(_grams(layers)[:, None], _grams(others)[:, None])
    n = len(layers.features)
    check_samples(n)
    pairs = zip(layers.singly(), others.singly(), strict=True)
    cross = torch.stack([_of_features(layer, other) for layer, other in pairs])
    return _batch(n, cross[None], _own(layers)[:, None], _own(others)[:, None])


def _batch(n: int, cross: Tensor, rows: Tensor, columns: Tensor) -> BatchHSIC:
    """A layer whose own HSIC_1 is zero has zero with any other (Cauchy-Schwarz); remove the rounding errors."""
    none = (rows == 0)[..., :, None] | (columns == 0)[..., None, :]
    return BatchHSIC(n, cross.masked_fill(none, 0), rows, columns)


def _own(layers: NarrowLayers) -> Tensor:
    """(L,), each layer with itself; rounding errors are set to zero (a single sample that differs gives only these)."""
    n = len(layers.features)
    own = torch.stack([_of_features(layer, layer).squeeze() for layer in layers.singly()])
    sizes = torch.stack([layer.features.square().sum() for layer in layers.singly()])
    return own.masked_fill(own <= 1e-13 * sizes.square() / (n * (n - 3)), 0)


def _of_features(rows: NarrowLayers, columns: NarrowLayers, order: Tensor | None = None) -> Tensor:
    """(L, M); `order` permutes the samples of the columns."""
    x = rows.features
    y = columns.features if order is None else columns.features[order]
    n = len(x)
    squares = _block_sums(_block_sums((x.mT @ y).square(), columns.widths).mT, rows.widths).mT
    k, l = _block_sums(x.square(), rows.widths), _block_sums(y.square(), columns.widths)  # noqa: E741
    total = squares - k.mT @ l * (n / (n - 2)) + k.sum(0)[:, None] * l.sum(0) / ((n - 1) * (n - 2))
    return total / (n * (n - 3))


def _grams(layers: Layers) -> Tensor:
    if isinstance(layers, Tensor):
        return layers
    return torch.stack([layer.features @ layer.features.mT for layer in layers.singly()])


def _block_sums(matrix: Tensor, widths: Sequence[int]) -> Tensor:
    """Sums over blocks of columns, so that a NaN stays within its layer."""
    return torch.stack([block.sum(1) for block in matrix.split_with_sizes([*widths], 1)], 1)
