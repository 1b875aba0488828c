"""Finding the groups of a module, and what a permutation of their units changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_probes.functional.units.finding import Found, Run, find_groups
from lightning_probes.functional.units.groups import permuted, random_permutations


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics of BatchNorm."""
    statistics = {name: buffer for name, buffer in module.named_buffers() if "running_" in name}
    return {**dict(module.named_parameters()), **statistics}


def pass_of(module: nn.Module, *inputs: object) -> Run:
    def run(state: Mapping[str, Tensor]) -> object:
        return functional_call(module, dict(state), inputs)

    return run


def groups_found(module: nn.Module, *inputs: object) -> Found:
    return find_groups(state_of(module), pass_of(module, *inputs))


def change(module: nn.Module, found: Found, *inputs: object, seed: int = 0) -> float:
    """Largest change of the output by random permutations of all groups, relative to the largest output."""
    state, run = state_of(module), pass_of(module, *inputs)
    permutations = random_permutations(found.groups, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        before, after = run(state), run(permuted(state, found.groups, permutations))
    return float((after - before).abs().max() / before.abs().max())
