"""A permuted copy of a network is recovered by weight matching, in the groups that are found in the module itself."""

from __future__ import annotations

import pytest
import torch

from lightning_probes.functional.units.groups import permuted, random_permutations
from lightning_probes.functional.units.matching import match_weights

from .exchanging import groups_found, state_of
from .networks import KNOWN, randomised, samples


@pytest.mark.parametrize("name", KNOWN)
def test_permuted_copy_is_recovered_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    module = randomised(KNOWN[name][0]())
    groups = groups_found(module, samples(name)).groups
    state = {key: tensor.detach() for key, tensor in state_of(module).items()}
    parameters = [key for key, _ in module.named_parameters()]  # running statistics are no weights
    for seed in range(3):
        draws = torch.Generator().manual_seed(seed)
        copy = permuted(state, groups, random_permutations(groups, draws))
        assert not all(torch.equal(copy[key], state[key]) for key in state)

        here, there = ({key: each[key] for key in parameters} for each in (state, copy))
        found = match_weights(here, there, groups, draws)

        back = permuted(copy, groups, found.permutations)
        assert [key for key in state if not torch.equal(back[key], state[key])] == []
