"""A network to which every probe of this package applies, and its data."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised


class Tokens(nn.Module):
    """The places of an image one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and a layer with a nonlinearity, each with a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        return x + self.hidden(x)


class Mean(nn.Module):
    """Over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def network() -> nn.Module:
    """A convolution with BatchNorm, residual additions, attention, and a head for three classes."""
    start = (nn.Conv2d(1, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Tanh())
    return nn.Sequential(*start, Tokens(), Block(4, 2), Block(4, 2), Mean(), nn.Linear(4, 3))


def complete() -> Fit:
    """Classes, with validation data."""
    train, val = labelled(1, 8, 8), labelled(1, 8, 8, seed=1)
    return Fit(Supervised(network()), loader(train), loader(val, shuffle=False))
