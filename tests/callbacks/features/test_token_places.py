"""Where tokens are is read from the shapes of a pass, or asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes.callbacks.features.token_places import Places, Shapes, common_spacing
from lightning_probes.functional.tracing.attention import watch_attention

SAMPLES = 4


def places(net: nn.Module, inputs: Tensor, **given: Any) -> Places:
    """Of the first attention layer of a network."""
    shapes, found = Shapes(SAMPLES, **given), list[Places]()
    with watch_attention(
        net, SAMPLES, lambda _, seen: found.append(shapes.places(seen.keys)), shapes.on_enter, shapes.on_other
    ):
        net(inputs)
    return found[0]


class Tokens(nn.Module):
    """Attention over tokens that a layer makes, behind leading ones."""

    def __init__(self, make: nn.Module, prefix: int = 0, batch_first: bool = True) -> None:
        super().__init__()
        self.make, self.prefix, self.batch_first = make, prefix, batch_first
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        x = torch.cat([torch.zeros(len(x), self.prefix, 8), x], 1)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.attention(x, x, x)[0]


def patches(axes: int, size: int) -> nn.Module:
    convolution = (nn.Conv1d, nn.Conv2d)[axes - 1](1, 8, size, stride=size)
    return nn.Sequential(convolution, nn.Flatten(2), Transposed())


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Cut(nn.Module):
    """Patches of an image or a signal, without a convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.linear = size, nn.LazyLinear(8)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.linear(x.unflatten(1, (-1, self.size)))
        return self.linear(x.unfold(2, self.size, self.size).unfold(3, self.size, self.size).flatten(4).flatten(1, 3))


IMAGES, SIGNALS, IDS = torch.randn(SAMPLES, 1, 12, 16), torch.randn(SAMPLES, 40), torch.randint(9, (SAMPLES, 16))
FOUND: dict[str, tuple[nn.Module, Tensor, Places]] = {
    "patches of an oblong image": (Tokens(patches(2, 4)), IMAGES, Places(0, (3, 4), 4)),
    "behind a CLS token": (Tokens(patches(2, 4), 1), IMAGES, Places(1, (3, 4), 4)),
    "behind CLS and registers": (Tokens(patches(2, 4), 5), IMAGES, Places(5, (3, 4), 4)),
    "tokens before samples": (Tokens(patches(2, 4), 1, False), IMAGES, Places(1, (3, 4), 4)),
    "patches of a signal": (Tokens(patches(1, 4), 1), SIGNALS[:, None], Places(1, (10,), 4)),
    "a signal without a convolution": (Tokens(Cut(4), 1), SIGNALS, Places(1, (10,))),
    "a square without a convolution": (Tokens(Cut(4), 1), torch.randn(SAMPLES, 1, 16, 16), Places(1, (4, 4))),
    "text of a square length": (Tokens(nn.Embedding(9, 8)), IDS, Places(0, (16,))),
    "text behind a learned prompt": (Tokens(nn.Embedding(9, 8), 3), IDS, Places(3, (16,))),
    "vectors": (Tokens(nn.Identity()), torch.randn(SAMPLES, 9, 8), Places(0, (9,))),
}


@pytest.mark.parametrize(("net", "inputs", "expected"), FOUND.values(), ids=FOUND)
def test_places_are_found(net: nn.Module, inputs: Tensor, expected: Places) -> None:
    assert places(net, inputs) == expected


def test_given_places_are_taken() -> None:
    net = Tokens(Cut(4), 1)
    assert places(net, torch.randn(SAMPLES, 1, 8, 32), grid=(2, 8)) == Places(1, (2, 8))
    assert places(Tokens(nn.Embedding(9, 8)), IDS, prefix=1) == Places(1, (15,))


def test_what_does_not_fit_is_refused_by_the_argument() -> None:
    oblong = torch.randn(SAMPLES, 1, 8, 24)
    with pytest.raises(MisconfigurationException, match=r"13 tokens of an image, .* pass grid=\(height, width\)"):
        places(Tokens(Cut(4), 1), oblong, prefix=1)
    with pytest.raises(MisconfigurationException, match=r"grid=\(4, 4\) has 16 cells, .* 13 tokens"):
        places(Tokens(Cut(4), 1), oblong, grid=(4, 4))
    with pytest.raises(MisconfigurationException, match="no token is left behind prefix_tokens=16"):
        places(Tokens(nn.Embedding(9, 8)), IDS, prefix=16)


def test_layers_of_different_spacing_are_measured_in_tokens() -> None:
    assert common_spacing([Places(1, (4, 4), 8), Places(0, (4, 4), 8)]) == 8
    assert common_spacing([Places(1, (4, 4), 8), Places(0, (2, 2), 16)]) == 1
    assert common_spacing([Places(0, (9,))]) == 1
