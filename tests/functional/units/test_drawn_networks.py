"""Networks drawn at random, in which a permutation of what is found must keep the function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .exchanging import change, groups_found
from .networks import randomised

CHANNELS, SIZE = 6, 4

ACTIVATIONS = (nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SiLU(), nn.Softmax(dim=1), nn.Softplus())
NORMS = (nn.BatchNorm2d, lambda width: nn.GroupNorm(2, width), lambda width: nn.GroupNorm(1, width))


class Mixed(nn.Module):
    """Layers on feature maps with an even number of channels; each kind of layer is named by its number."""

    def __init__(self, kinds: list[int], seed: int) -> None:
        super().__init__()
        self.kinds, self.seed = kinds, seed
        self.layers = nn.ModuleList()
        self.tied = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        width = CHANNELS
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        for position, kind in enumerate(kinds):
            pick = seed + position
            layer: nn.Module = nn.Identity()
            if kind == 0:
                layer, width = nn.Conv2d(width, CHANNELS, 3, padding=1), CHANNELS
            elif kind == 1:
                layer = ACTIVATIONS[pick % len(ACTIVATIONS)]
            elif kind == 2:
                layer = NORMS[pick % len(NORMS)](width)
            elif kind == 3:  # residual
                layer = nn.Conv2d(width, width, 1)
            elif kind == 4:  # grouped, or depthwise
                layer = nn.Conv2d(width, width, 3, padding=1, groups=(2, width)[pick % 2])
            elif kind == 5:  # put together with what it computes
                layer, width = nn.Conv2d(width, 4, 1), width + 4
            elif kind == 6:  # one half gates the other
                layer, width = nn.Conv2d(width, 2 * CHANNELS, 1), CHANNELS
            elif kind == 7:  # a part of the channels
                width = 4
            elif kind == 8:  # the same layer as elsewhere
                layer, width = nn.Conv2d(width, CHANNELS, 1), CHANNELS
            self.layers.append(layer)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(width * SIZE * SIZE, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == 3:
                h = h + layer(h).relu()
            elif kind == 5:
                h = torch.cat([layer(h), h], 1)
            elif kind == 6:
                h = F.glu(layer(h), 1)
            elif kind == 7:
                h = h[:, :4] * (1 + h[:, -1:].sigmoid())
            elif kind == 8:
                h = self.tied(self.tied(layer(h)).relu())
            else:
                h = layer(h)
        return self.head(h)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=6), st.integers(0, 11))
def test_a_permutation_of_what_is_found_keeps_the_function(kinds: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    module = randomised(Mixed(kinds, seed)).double()
    x = torch.randn(2, 2, SIZE, SIZE, dtype=torch.float64)
    found = groups_found(module, x)
    assert (found.unknown, found.dropped) == ((), ())
    assert found.groups[-1].size == 8  # hidden units of the head
    assert change(module, found, x, seed=seed) < 1e-9
