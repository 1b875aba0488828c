"""A probe that needs another run, on whatever module it meets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_probes import ModeConnectivity
from lightning_probes.probing import ProbeArguments


class ToSibling(ModeConnectivity):
    """The other run has random parameters of the module's shapes, always the same."""

    defaults = ProbeArguments()

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"other": {}, "num_alphas": 3, **arguments})

    def state(self, argument: str, module: nn.Module, whole: bool = False) -> dict[str, Tensor] | None:
        if argument != "other":
            return super().state(argument, module, whole)
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 4
            for name, parameter in module.named_parameters()
        }
