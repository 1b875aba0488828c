"""Gradients over depth, against closed forms and against gradients written down."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_probes import GradientFlow, Scalar
from tests.callbacks.flow.networks import CLASSES, Chain, LinearStream, cross_entropy, samples


def measured(module: nn.Module, data: Any, **arguments: Any) -> dict[str, Any]:
    found = GradientFlow(**{"loss_fn": cross_entropy, **arguments}).evaluate(module, data)
    return {
        key.removeprefix("gradient_flow/"): result.value if isinstance(result, Scalar) else result
        for key, result in found.items()
    }


@pytest.mark.parametrize("scale", [0.3, 1.0, -0.5, 0.0])
def test_slope_of_a_linear_stream_is_the_logarithm_of_one_and_its_scale(scale: float) -> None:
    found = measured(LinearStream(scale), samples(12))
    assert found["slope"] == pytest.approx(-math.log10(1 + scale), abs=1e-6)
    assert found["decades"] == pytest.approx(4 * math.log10(1 + scale), abs=1e-6)
    assert found["stream_decades"] == pytest.approx(4 * math.log10(1 + scale), abs=1e-6)
    assert found["dead"] == 0
    if scale == 0:
        assert found["slope"] == found["decades"] == 0


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.41, 1.7, 2.4])
def test_slope_of_a_plain_chain_is_that_of_theory(gain: float) -> None:
    """Up to the width: a layer's gain has a relative standard deviation of about one over the root of the width."""
    depth, width = 8, 256
    found = measured(Chain(gain, depth, width), samples(width))
    assert len(found["norm"].y) == depth  # without the head
    assert found["slope"] == pytest.approx(-math.log10(gain / math.sqrt(2)), abs=4 / math.log(10) / math.sqrt(width))


def test_gradients_of_weights_hide_what_gradients_of_activations_show() -> None:
    net, data = Chain(0.7, depth=24, width=64), samples(64)
    assert measured(net, data)["decades"] < -5
    cross_entropy(net, data.tensors).backward()
    first, last = (net.layers[place].weight.grad.norm().log10() for place in (0, -1))
    assert abs(first - last) < 1


class Convolutions(nn.Module):
    """Convolutions with BatchNorm, and ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (2, 4, 4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x))
            if seen is not None:
                seen.append(x)
            x = x.relu() if seen is not None else x.relu_()
        return self.head(x.mean((2, 3)))


def test_numbers_are_those_of_gradients_written_down() -> None:
    net, data = Convolutions(), samples(2, 6, 6)
    found = measured(net, data, micro_batch_size=24)
    net.eval()
    seen: list[Tensor] = []
    loss = F.cross_entropy(net(data.tensors[0], seen), data.tensors[1], reduction="sum")
    norms = [gradient.flatten(1).norm(dim=1) for gradient in torch.autograd.grad(loss, seen)]
    np.testing.assert_allclose(found["norm"].y, [np.median(each) for each in norms], rtol=1e-4)
    streams = [float(z.detach().flatten(1).norm(dim=1).median()) for z in (seen[0], seen[-1])]
    assert found["stream_decades"] == pytest.approx(np.log10(streams[1] / streams[0]), abs=0.05)


def test_frozen_layers_have_gradients_too_and_stay_frozen() -> None:
    net = Chain(1.0)
    everything = measured(net, samples(256))
    net.layers[:6].requires_grad_(False)
    frozen = measured(net, samples(256))
    np.testing.assert_array_equal(everything["norm"].y, frozen["norm"].y)
    assert not any(parameter.requires_grad for parameter in net.layers[:6].parameters())


def test_layers_can_be_named() -> None:
    net, data = Chain(1.0), samples(256)
    everything = measured(net, data)["norm"].y
    np.testing.assert_allclose(measured(net, data, layers="layers.[025]")["norm"].y, everything[[0, 2, 5]], rtol=1e-6)


def test_flags_are_raised_beyond_their_thresholds_alone() -> None:
    flags = {gain: measured(Chain(gain, 24, 64), samples(64)) for gain in (0.7, 1.41, 2.4)}
    raised = {gain: [k for k in ("vanishing", "exploding") if each[f"flag/{k}"].raised] for gain, each in flags.items()}
    assert raised == {0.7: ["vanishing"], 1.41: [], 2.4: ["exploding"]}
    assert not measured(Chain(0.7, 24, 64), samples(64), vanishing=20.0)["flag/vanishing"].raised


def test_gradients_far_below_single_precision_squared_are_no_zeros() -> None:
    found = measured(Chain(0.7, 100, 64), samples(64))
    assert -35 < found["decades"] < -25
    assert found["dead"] == 0


class Margin(nn.Module):
    """A loss without a gradient for the samples beyond a margin."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_dead_is_the_share_of_samples_without_a_gradient() -> None:
    data = samples(12)
    margin = torch.arange(64) % 4 == 0

    def loss(module: nn.Module, batch: Any) -> Tensor:
        return (module(batch[0])[:, 0] * (batch[1] % 4 == 0)).mean()

    data.tensors = (data.tensors[0], torch.arange(64))
    assert measured(Margin(), data, loss_fn=loss)["dead"] == 1 - margin.double().mean()


def test_a_gradient_of_zero_raises_vanishing_and_is_no_finite_number_of_decades() -> None:
    net = Margin()
    net.layers[2].weight.data.zero_()
    found = measured(net, samples(12), loss_fn=lambda module, batch: module(batch[0]).mean())
    assert found["flag/vanishing"].raised
    assert found["flag/nonfinite"].raised
    assert found["dead"] == 1
    assert found["norm"].y[0] == 0 < found["norm"].y[1]


def test_micro_batches_do_not_change_the_numbers() -> None:
    net, data = Convolutions(), samples(2, 6, 6)
    whole, parts = (measured(net, data, micro_batch_size=size) for size in (64, 9))
    np.testing.assert_allclose(whole["norm"].y, parts["norm"].y, rtol=1e-4)
    assert whole["decades"] == pytest.approx(parts["decades"], abs=1e-4)


def test_too_few_layers_end_in_a_sentence_that_names_an_argument() -> None:
    with pytest.raises(MisconfigurationException, match="reach 1 layers of Sequential with one row"):
        measured(nn.Sequential(nn.Linear(12, CLASSES)), samples(12))


def test_a_named_layer_that_no_gradient_reaches_is_refused() -> None:
    net = Chain(1.0)
    net.aside = nn.Linear(256, 2)
    net.register_forward_hook(lambda module, inputs, output: (module.aside(inputs[0]), output)[1])
    with pytest.raises(MisconfigurationException, match=r"layers: 'aside' returns no tensor with one row per sample"):
        measured(net, samples(256), layers=["layers.*", "aside"])


class Checkpointed(LinearStream):
    """Recomputes its blocks in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(lambda x, block=block: x + block(x), x, use_reentrant=self.reentrant)
        return self.head(x)


def test_activation_checkpoints_change_nothing_unless_they_hide_the_graph() -> None:
    net = Checkpointed(0.3)
    assert measured(net, samples(12))["slope"] == pytest.approx(-math.log10(1.3), abs=1e-6)
    net.reentrant = True
    with pytest.raises(MisconfigurationException, match="use_reentrant=False to activation checkpoints"):
        measured(net, samples(12))
