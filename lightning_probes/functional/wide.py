"""Double precision, which not every device has.

What is read on the host goes through `on_host`, and is summed there in float64. It waits for the device: gather what
belongs to an event on the device first, then read it once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """The widest real dtype of a device: float64, or float32 on Apple's GPUs.

    Example:
        >>> widest(torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def on_host(tensor: Tensor) -> Tensor:
    """The values of a tensor on the CPU in float64.

    Example:
        >>> on_host(torch.tensor([1, 2]))
        tensor([1., 2.], dtype=torch.float64)
    """
    return tensor.detach().cpu().to(torch.float64)


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor itself, but in single precision where it is in half."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
