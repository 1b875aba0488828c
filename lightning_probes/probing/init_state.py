"""The initialisation of a run: captured once, on CPU, or read from where the user kept it."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

StateDict: TypeAlias = dict[str, Tensor]
InitStateSource: TypeAlias = str | PathLike[str] | Mapping[str, Any]


def capture_state(module: nn.Module) -> StateDict:
    """Parameters and buffers of a module, copied to CPU in their own dtype.

    Example:
        >>> sorted(capture_state(nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def load_state(source: InitStateSource, module: nn.Module) -> StateDict:
    """Read an initial state from a Lightning checkpoint, a saved state dict, or a state dict in memory.

    Args:
        source: Path of a file that `torch.load(weights_only=True)` reads, or a mapping of names to tensors; either may
            be a Lightning checkpoint with a `state_dict` inside.
        module: The module the state belongs to.

    Returns:
        The tensors of `source` under the names that the parameters and buffers of `module` have.

    Raises:
        ValueError: If a parameter is missing or has another shape; the message names `init_state`.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> sorted(load_state({"state_dict": module.state_dict()}, module))
        ['bias', 'weight']
    """
    content = source if isinstance(source, Mapping) else torch.load(source, map_location="cpu", weights_only=True)
    content = content.get("state_dict", content)
    for name, parameter in module.named_parameters():
        found = content.get(name)
        if not isinstance(found, Tensor) or found.shape != parameter.shape:
            what = "missing" if found is None else f"of shape {tuple(getattr(found, 'shape', ()))}"
            raise ValueError(
                f"init_state does not belong to this module: parameter {name!r} of shape {tuple(parameter.shape)} is "
                f"{what} there; pass a checkpoint of the same model as init_state="
            )
    names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
    return {name: content[name].detach().to("cpu") for name in names if name in content}
