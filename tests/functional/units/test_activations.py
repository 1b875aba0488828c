"""The units before and after each activation of PyTorch can be exchanged."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from lightning_probes.functional.units.finding import find_groups

# Softmax2d needs images, attention is no activation, a threshold has no defaults, and RReLU may draw random numbers.
OTHERS = {"Softmax2d", "MultiheadAttention", "Threshold", "RReLU"}
ACTIVATIONS = [
    kind for name in nn.modules.activation.__all__ if name not in OTHERS for kind in [getattr(nn, name)]
]  # fmt: skip
ALONG_AXIS = (nn.GLU, nn.Softmax, nn.Softmin, nn.LogSoftmax)


def made(kind: type[nn.Module], inplace: bool) -> nn.Module:
    arguments = {"dim": -1} if kind in ALONG_AXIS else {"inplace": True} if inplace else {}
    return kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "inplace"),
    [
        pytest.param(kind, inplace, id=f"{kind.__name__}-{'inplace' if inplace else 'copy'}")
        for kind in ACTIVATIONS
        for inplace in (False, True)
        if not inplace or "inplace" in inspect.signature(kind).parameters
    ],
)
def test_units_around_an_activation_are_found(kind: type[nn.Module], inplace: bool) -> None:
    activation = made(kind, inplace).eval()
    network = nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(4 if kind is nn.GLU else 8, 2))
    samples = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    state = {name: parameter.detach() for name, parameter in network.named_parameters()}
    found = find_groups(state, lambda state: torch.func.functional_call(network, state, samples))
    assert found.unknown == ()
    assert found.dropped == ()
    assert [group.size for group in found.groups] == [4 if kind is nn.GLU else 8]
