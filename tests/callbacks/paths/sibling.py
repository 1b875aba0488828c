"""A probe that needs another run, on whatever module it meets."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_probes import ModeConnectivity
from lightning_probes.probing import ProbeArguments


class ToSibling(ModeConnectivity):
    """The other run has the module's weights, made smaller."""

    defaults = ProbeArguments()

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"other": {}, "num_alphas": 3, **arguments})

    def state(self, argument: str, module: nn.Module, whole: bool = False) -> dict[str, Tensor] | None:
        if argument != "other":
            return super().state(argument, module, whole)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        own = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        return {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in own.items()}
