"""Lazy modules, whose parameters have no shape before their first batch."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy


def check_initialised(module: nn.Module) -> None:
    """Check that every parameter and buffer has a shape.

    Raises:
        ValueError: If a lazy module has not seen its first batch yet.
    """
    for path, child in module.named_modules():
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            if is_lazy(tensor):
                name = f"{path}.{name}" if path else name
                raise ValueError(f"{name!r} is not initialised: run one batch through the lazy module before `fit`")
