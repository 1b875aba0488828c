"""A permuted copy of a network is recovered by weight matching, in the groups that are found in the module itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_probes.functional.units.groups import permuted, random_permutations
from lightning_probes.functional.units.matching import match_weights

from .exchanging import groups_found, state_of
from .networks import KNOWN, randomised, samples
from .test_transformers import TOKENS, bert, gpt2


def assert_recovered(module: nn.Module, inputs: Tensor) -> None:
    groups = groups_found(module, inputs).groups
    state = {name: tensor.detach() for name, tensor in state_of(module).items()}
    parameters = [name for name, _ in module.named_parameters()]  # running statistics are no weights
    for seed in range(3):
        draws = torch.Generator().manual_seed(seed)
        copy = permuted(state, groups, random_permutations(groups, draws))
        assert not all(torch.equal(copy[name], state[name]) for name in state)

        here, there = ({name: each[name] for name in parameters} for each in (state, copy))
        found = match_weights(here, there, groups, draws)

        back = permuted(copy, groups, found.permutations)
        assert [name for name in state if not torch.equal(back[name], state[name])] == []


@pytest.mark.parametrize("name", KNOWN)
def test_permuted_copy_is_recovered_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    assert_recovered(randomised(KNOWN[name][0]()), samples(name))


@pytest.mark.parametrize("build", [bert, gpt2])
def test_permuted_copy_of_a_transformer_is_recovered_bit_for_bit(build: object) -> None:
    torch.manual_seed(0)
    module = build("sdpa")  # type: ignore[operator]
    for parameter in module.parameters():
        if parameter.ndim == 1:  # biases are all zero at the start
            nn.init.normal_(parameter)
    assert_recovered(module, TOKENS)
