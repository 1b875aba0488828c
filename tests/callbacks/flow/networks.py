"""Networks whose flow is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES = 10


class LinearStream(nn.Module):
    """`depth` blocks that add `scale` times the stream, and a head."""

    def __init__(self, scale: float, depth: int = 5, width: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)
        for block in self.blocks:
            block.weight.data = scale * torch.eye(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Chain(nn.Module):
    """`depth` layers of ReLUs whose weights have standard deviation `gain` over the root of the width."""

    def __init__(self, gain: float, depth: int = 8, width: int = 256) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)
        for layer in self.layers:
            layer.weight.data = torch.randn(width, width, generator=draws) * gain / math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def samples(*shape: int, number: int = 64) -> TensorDataset:
    draws = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(number, *shape, generator=draws), torch.arange(number) % CLASSES)


def cross_entropy(module: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])
