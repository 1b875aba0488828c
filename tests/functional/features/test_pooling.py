from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_probes.functional.features.channels import Channels
from lightning_probes.functional.features.pooling import Pooling

X = torch.randn(5, 6, 7, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("most", "grid"), [(6, (1, 1)), (24, (2, 2)), (60, (3, 3)), (6 * 56, (7, 7)), (6 * 64, (7, 9)), (10**6, (7, 9))]
)
def test_cells_are_those_of_adaptive_pooling_and_as_many_as_fit(most: int, grid: tuple[int, int]) -> None:
    pooling = Pooling.fit(X, axis=1, tokens="auto", most=most)
    assert pooling.cells == grid
    torch.testing.assert_close(pooling(X), F.adaptive_avg_pool2d(X, grid).flatten(1))


def test_more_channels_than_features_are_one_cell_and_stay_apart() -> None:
    torch.testing.assert_close(Pooling.fit(X, axis=1, tokens="auto", most=3)(X), X.mean((2, 3)))


def test_channels_in_the_last_axis_give_the_same_features() -> None:
    first, last = (Pooling.fit(x, axis, "auto", 24) for x, axis in ((X, 1), (X.movedim(1, -1), 3)))
    torch.testing.assert_close(first(X), last(X.movedim(1, -1)))


def test_another_length_gives_as_many_features() -> None:
    pooling = Pooling.fit(torch.zeros(2, 10, 4), axis=2, tokens="auto", most=16)
    assert pooling(torch.zeros(3, 7, 4)).shape == (3, 16)
    assert pooling(torch.zeros(3, 2, 4)).shape == (3, 16)


def test_half_precision_is_averaged_in_single() -> None:
    features = torch.full((2, 2, 4096), 3.0, dtype=torch.float16)
    pooled = Pooling.fit(features, axis=1, tokens="mean", most=256)(features)
    assert pooled.dtype == torch.float32
    assert (pooled == 3).all()


def test_another_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match="returned 2 axes after 4 in an earlier pass"):
        Pooling.fit(X, 1, "auto", 24)(X[:, :, 0, 0])


def test_axis_of_channels_follows_from_the_layers_before() -> None:
    channels = Channels()
    image, tokens, patches = torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 16), torch.zeros(2, 4, 4, 8)
    assert channels.axis(nn.GELU(), tokens) == 2  # as most models have it
    assert channels.axis(nn.GELU(), image) == 1
    assert channels.axis(nn.BatchNorm1d(8), tokens) == 1
    assert channels.axis(nn.Dropout(), tokens) == 1
    assert channels.axis(nn.LayerNorm(16), tokens) == 2
    assert channels.axis(None, tokens) == 2
    assert channels.axis(nn.LayerNorm(8), patches) == 3
    assert channels.axis(nn.Identity(), patches) == 3
