"""CKA between layers, accumulated over micro-batches and processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_probes.functional.features.cka import normalize_hsic
from lightning_probes.functional.features.layer_hsic import BatchHSIC, hsic_of_grams
from lightning_probes.functional.wide import on_host


class CKA(NamedTuple):
    """CKA of layer pairs, float64.

    Attributes:
        values: (..., L, M).
        null: (P, ..., L, M), CKA after permuting the samples of the column layers.
    """

    values: npt.NDArray[np.float64]
    null: npt.NDArray[np.float64]


class MinibatchCKA(Metric):
    """Linear CKA of row layers with column layers (Nguyen, Raghu & Kornblith 2021, arXiv:2010.15327).

    Unbiased HSIC_1 of each micro-batch, weighted by its size, is summed over micro-batches and processes in float64;
    CKA is computed from the sums. It still depends on the micro-batch size, so report that too. CKA is NaN for a layer
    whose features are equal in all samples.

    Args:
        shape: Shape (..., L, M) of the result. Leading axes are batched: with ``(L, 1, 1)`` and rows and columns of
            shape (L, 1, n, n), each layer is compared only with its own counterpart.
        num_permutations: Number P of draws from the null distribution; costs P more products per update.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> from lightning_probes.functional.features.cka import linear_gram
        >>> inputs = torch.arange(24.0).sin().reshape(8, 3)
        >>> layers = inputs, inputs.relu()
        >>> cka = MinibatchCKA((2, 2))
        >>> cka.update(torch.stack([linear_gram(features) for features in layers]))
        >>> cka.compute().values.round(3)
        array([[1.   , 0.959],
               [0.959, 1.   ]])
    """

    full_state_update = False

    cross: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, shape: tuple[int, ...], num_permutations: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.num_permutations = num_permutations
        # Shapes are fixed here, so that a process that got no micro-batch adds zeros of the right shape.
        *batch, num_rows, num_columns = shape
        sums = {
            "cross": (1 + num_permutations, *shape),  # the samples in order, then permuted
            "rows": (*batch, num_rows),
            "columns": (*batch, num_columns),
        }
        for name, size in sums.items():
            self.add_state(name, on_host(0.0).new_zeros(size), dist_reduce_fx="sum")

    def update(
        self, rows: Tensor | BatchHSIC, columns: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Add one micro-batch.

        Args:
            rows: (..., L, n, n) Grams, raw or U-centred; or a `BatchHSIC`, which needs nothing else.
            columns: (..., M, n, n) Grams of the same samples; the rows themselves if left out.
            generator: Draws the permutations of this micro-batch. If it is seeded by the micro-batch, the null does not
                depend on which process got it.

        Raises:
            ValueError: With fewer than four samples, Grams that do not fit ``shape``, or no generator for the null.
        """
        if isinstance(rows, Tensor):
            rows = hsic_of_grams(rows, columns, generator, self.num_permutations)
        if rows.cross.shape != (1 + self.num_permutations, *self.shape):
            permutations, *shape = rows.cross.shape[0] - 1, *rows.cross.shape[1:]
            raise ValueError(
                f"The Grams give CKA of shape {tuple(shape)} and {permutations} permutations, but MinibatchCKA was "
                f"built with shape={self.shape} and num_permutations={self.num_permutations}."
            )
        device = self.cross.device
        self.cross = self.cross + rows.samples * rows.cross.to(device)
        self.rows = self.rows + rows.samples * rows.rows.to(device)
        self.columns = self.columns + rows.samples * rows.columns.to(device)

    def compute(self) -> CKA:
        """CKA over all micro-batches of all processes."""
        # Arrays, because torchmetrics squeezes a tensor with one element and a single pair would lose its shape.
        cka = normalize_hsic(self.cross, self.rows, self.columns).cpu().numpy()
        return CKA(values=cka[0], null=cka[1:])
