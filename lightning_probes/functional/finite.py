"""Whether a run has diverged."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def are_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether all numbers in a state are finite.

    Example:
        >>> import torch
        >>> are_finite({"weight": torch.ones(2)}), are_finite({"weight": torch.tensor([1.0, float("nan")])})
        (True, False)
    """
    return all(bool(tensor.isfinite().all()) for tensor in state.values())
