"""What each block adds to the stream, against closed forms and against the same numbers written down."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes import Heatmap, ResidualFlow, Scalar
from tests.callbacks.flow.networks import CLASSES, Chain, LinearStream, cross_entropy, samples
from tests.functional.tracing.networks import BasicBlock, PreActivation


def measured(module: nn.Module, data: Any, **arguments: Any) -> dict[str, Any]:
    found = ResidualFlow(**{"loss_fn": cross_entropy, **arguments}).evaluate(module, data)
    return {
        key.removeprefix("residual/"): result.value if isinstance(result, Scalar) else result
        for key, result in found.items()
    }


@pytest.mark.parametrize("scale", [0.3, 1.0, -0.5])
def test_blocks_that_add_a_multiple_of_the_stream_go_straight(scale: float) -> None:
    found = measured(LinearStream(scale), samples(12))
    assert found["blocks"] == 5
    for key in ("ratio_median", "ratio_max", "ratio_p95"):
        assert found[key] == pytest.approx(abs(scale), rel=1e-6)
    assert found["cosine"] == pytest.approx(math.copysign(1, scale), rel=1e-6)
    assert found["turn"] == pytest.approx(1, rel=1e-6)
    assert found["path_length"] == pytest.approx(1, rel=1e-6)


def test_blocks_that_add_nothing_have_a_ratio_of_exactly_zero_and_no_direction() -> None:
    found = measured(LinearStream(0.0), samples(12))
    assert (found["ratio"].values == 0).all()
    assert found["ratio_median"] == found["ratio_max"] == 0
    assert not {"cosine", "turn", "path_length"} & found.keys()
    assert not found["flag/nonfinite"].raised


def test_blocks_that_undo_each_other_make_a_long_way() -> None:
    net = LinearStream(1.0, depth=6)
    for number, block in enumerate(net.blocks):
        block.weight.data *= 1.0 if number % 2 == 0 else -0.25  # times 2, then times 3/4
    found = measured(net, samples(12))
    z = np.cumprod([1, 2, 0.75, 2, 0.75, 2])
    assert found["turn"] == pytest.approx(-1, rel=1e-6)
    assert found["path_length"] == pytest.approx(np.abs(np.diff(z)).sum() / (z[-1] - z[0]), rel=1e-6)


def test_orthogonal_blocks_turn_by_a_right_angle() -> None:
    net = LinearStream(0.0, depth=2)
    for block, row in zip(net.blocks, (0, 1), strict=True):
        block.weight.data[row, 2] = 1.0
    found = measured(net, samples(12))
    assert found["turn"] == pytest.approx(0, abs=1e-6)


class Convolutions(nn.Module):
    """In-place additions, in-place ReLUs, and a change of shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            PreActivation(4),
            BasicBlock(4, 4),
            BasicBlock(4, 8, 2),
            BasicBlock(8, 8),
            BasicBlock(8, 8),
            BasicBlock(8, 8),
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def test_numbers_are_those_of_operands_written_down() -> None:
    net, data = Convolutions(), samples(4, 8, 8)
    found = measured(net, data, micro_batch_size=24)
    net.eval()
    skips, branches = [], []
    with torch.no_grad():
        x = data.tensors[0].double()
        net.double()
        for number, block in enumerate(net.blocks):
            skips.append((block.down(x) if number else x).flatten(1))
            after = block(x)
            branch = block.second(F.relu(block.first(x))) if number else after - x
            branches.append(branch.flatten(1))
            x = after
    net.float()
    ratios = [(f.norm(dim=1) / z.norm(dim=1)) for f, z in zip(branches, skips, strict=True)]
    np.testing.assert_allclose(found["ratio"].values[:, 0], [np.median(r) for r in ratios], rtol=1e-5)
    assert found["ratio_p95"] == pytest.approx(max(np.quantile(r, 0.95) for r in ratios), rel=1e-5)
    stage = torch.stack(skips[2:])
    length = stage.diff(dim=0).norm(dim=2).sum(0) / (stage[-1] - stage[0]).norm(dim=1)
    assert found["path_length"] == pytest.approx(np.median(length), rel=1e-5)
    pairs = [(0, 1), (2, 3), (3, 4), (4, 5)]
    turns = torch.cat([F.cosine_similarity(branches[a], branches[b]) for a, b in pairs])
    assert found["turn"] == pytest.approx(np.median(turns), abs=1e-5)


class Tokens(nn.Module):
    """One block on (samples, tokens, dim), or with tokens first; its first token starts at zero."""

    def __init__(self, samples_first: bool = True) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.samples_first = samples_first

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([0.1 * x[:, :1], x[:, 1:]], 1)
        x = x if self.samples_first else x.transpose(0, 1).contiguous()
        x = x + 2 * self.block(x).tanh()
        return self.head(x[:, 0] if self.samples_first else x[0])


@pytest.mark.parametrize("samples_first", [True, False])
def test_first_token_and_the_others_are_told_apart(samples_first: bool) -> None:
    torch.manual_seed(0)
    net, data = Tokens(samples_first), samples(5, 6)
    found = measured(net, data, tokens="cls")
    x = torch.cat([0.1 * data.tensors[0][:, :1], data.tensors[0][:, 1:]], 1)
    f = 2 * net.block(x).tanh().detach()
    for prefix, part in (("cls/", slice(0, 1)), ("", slice(1, None))):
        ratio = f[:, part].flatten(1).norm(dim=1) / x[:, part].flatten(1).norm(dim=1)
        assert found[f"{prefix}ratio_median"] == pytest.approx(np.median(ratio), rel=1e-5)


def test_micro_batches_do_not_change_the_numbers() -> None:
    net, data = Convolutions(), samples(4, 8, 8)
    whole, parts = (measured(net, data, micro_batch_size=size) for size in (64, 9))
    for key in whole:
        if not key.startswith("flag"):
            values = [each.values if isinstance(each, Heatmap) else each for each in (whole[key], parts[key])]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)


def test_network_without_residual_additions_is_offered_another_probe() -> None:
    with pytest.raises(MisconfigurationException, match="found in Chain: use GradientFlow, which needs none, or, if"):
        measured(Chain(1.0), samples(256))


@torch.jit.script
def whole_block(x: Tensor, weight: Tensor) -> Tensor:
    return x + torch.relu(x @ weight)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(12, 12)), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(whole_block(x, self.weight))


def test_an_addition_that_cant_be_seen_ends_in_a_sentence_that_says_what_to_set() -> None:
    with pytest.raises(MisconfigurationException, match="scripted or fused code hides one, pass loss_fn="):
        measured(Scripted(), samples(12))


class Deepens(LinearStream):
    """Skips its second block on small batches."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.blocks[0](x)
        return self.head(x + 2 * self.blocks[1](x) if len(x) > 4 else x)


def test_passes_of_another_course_count_for_the_blocks_that_they_run() -> None:
    found = measured(Deepens(0.3), samples(12, number=19), micro_batch_size=5, num_samples=19)  # 5, 5, 5 and 4
    assert found["ratio"].row_labels == ("blocks.0", "blocks.1")
    np.testing.assert_allclose(found["ratio"].values[:, 0], [0.3, 0.6], rtol=1e-6)
    assert not found["flag/nonfinite"].raised


def test_a_compiled_network_is_followed_as_it_runs_in_a_probe() -> None:
    found = measured(torch.compile(LinearStream(0.3), backend="eager"), samples(12))
    assert found["blocks"] == 5
    assert found["ratio_median"] == pytest.approx(0.3, rel=1e-6)
