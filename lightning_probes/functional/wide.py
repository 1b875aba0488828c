"""Precision: half becomes single, and sums use double where the device supports it.

Apple's GPUs have no double precision. Sums on a device use its `widest` dtype. The values of an event are collected on
the device, copied once to the CPU by `on_host`, and summed there in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """The widest real dtype of a device.

    Example:
        >>> widest(torch.device("cpu")), widest(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def on_host(values: Tensor | float | Sequence[float]) -> Tensor:
    """Values on the CPU in float64; waits for their device.

    Example:
        >>> on_host(torch.tensor([1, 2]))
        tensor([1., 2.], dtype=torch.float64)
    """
    if isinstance(values, Tensor):
        return values.detach().cpu().to(torch.float64)
    return torch.tensor(values, dtype=torch.float64)


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor, converted from half to single precision if necessary."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
