"""Groups of a network whose weights are no longer finite are those that it had before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .exchanging import groups_found
from .networks import KNOWN, randomised, samples
from .test_hard_cases import SAMPLES, ThroughPython, with_units_before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["MLP", "CNN, BatchNorm, flatten", "ViT, norm first", "GRU", "RMS norm and a constant"]
)
def test_groups_are_those_of_the_sound_network(name: str, value: float) -> None:
    torch.manual_seed(0)
    module, x = randomised(KNOWN[name][0]()), samples(name)
    expected = groups_found(module, x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    found = groups_found(module, x)
    assert [(group.name, group.size) for group in found.groups] == [
        (group.name, group.size) for group in expected.groups
    ]
    assert found.dropped == ()


def test_groups_that_change_the_output_are_dropped_from_a_network_that_has_diverged_too() -> None:
    torch.manual_seed(0)
    module = with_units_before(ThroughPython)
    nn.init.constant_(module[0].bias, float("nan"))  # type: ignore[index]
    found = groups_found(module, SAMPLES)
    assert found.dropped == ("3.first",)
    assert [group.name for group in found.groups] == ["0", "2"]
