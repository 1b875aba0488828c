from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_probes.functional.units.groups import Group, permuted, random_permutations
from lightning_probes.functional.units.matching import match_weights

State = dict[str, Tensor]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units(count: int, width: int = 1) -> Tensor:
    return torch.arange(count * width).reshape(count, width)


def hidden(name: str, after: str, count: int) -> Group:
    each = units(count)
    return Group(name, {(f"{name}.weight", 0): each, (f"{name}.bias", 0): each, (f"{after}.weight", 1): each})


def chain(*widths: int, seed: int = 0) -> tuple[State, list[Group]]:
    """A plain network whose layers are called by their numbers."""
    state: State = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        state[f"{layer}.weight"] = torch.randn(outputs, inputs, generator=draws(seed + layer))
        state[f"{layer}.bias"] = torch.randn(outputs, generator=draws(seed + 50 + layer))
    return state, [hidden(str(k), str(k + 1), width) for k, width in enumerate(widths[1:-1])]


def stream(width: int = 10) -> tuple[State, list[Group]]:
    """A residual stream that a square matrix reads and writes."""
    shapes = {"in": (width, 6), "inside": (width, width), "out": (3, width)}
    each = units(width)
    group = Group("in", {("in", 0): each, ("inside", 0): each, ("inside", 1): each, ("out", 1): each})
    return {name: torch.randn(shape, generator=draws(len(name))) for name, shape in shapes.items()}, [group]


def agreement(here: State, there: State) -> float:
    return sum(float((here[name].double() * there[name].double()).sum()) for name in here)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("state", "groups"), [chain(5, 30, 20, 3), chain(4, 12, 3), stream()])
def test_permuted_copy_is_recovered_bit_for_bit(state: State, groups: list[Group], seed: int) -> None:
    copy = permuted(state, groups, random_permutations(groups, draws(seed)))
    assert not all(torch.equal(copy[name], state[name]) for name in state)

    found = match_weights(state, copy, groups, draws(seed))

    assert found.converged
    back = permuted(copy, groups, found.permutations)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_units_that_are_several_columns_of_the_next_layer_are_recovered() -> None:
    flattened = Group("conv", {("conv", 0): units(6), ("fc", 1): units(6, width=4)})
    state = {"conv": torch.randn(6, 1, 3, 3, generator=draws()), "fc": torch.randn(5, 24, generator=draws())}
    copy = permuted(state, [flattened], random_permutations([flattened], draws(1)))
    back = permuted(copy, [flattened], match_weights(state, copy, [flattened], draws()).permutations)
    assert torch.equal(back["fc"], state["fc"])


def test_single_group_reaches_the_best_of_all_permutations() -> None:
    (here, groups), (there, _) = chain(3, 5, 2), chain(3, 5, 2, seed=7)
    best = max(
        agreement(here, permuted(there, groups, [torch.tensor(order)])) for order in itertools.permutations(range(5))
    )
    found = permuted(there, groups, match_weights(here, there, groups, draws()).permutations)
    assert agreement(here, found) == pytest.approx(best, rel=1e-12)


@given(st.integers(0, 1000), st.booleans())
@settings(deadline=None, max_examples=25)
def test_inner_product_never_falls_below_that_of_the_start(seed: int, square: bool) -> None:
    here, groups = stream() if square else chain(4, 9, 7, 2)
    there = {name: torch.randn(tensor.shape, generator=draws(seed)) for name, tensor in here.items()}
    start = random_permutations(groups, draws(seed))

    found = match_weights(here, there, groups, draws(seed), start)

    at_start, at_end = (agreement(here, permuted(there, groups, each)) for each in (start, found.permutations))
    assert at_end >= at_start - 1e-9
    assert [sorted(each.tolist()) for each in found.permutations] == [list(range(group.size)) for group in groups]


def test_permutation_to_start_from_stays_if_nothing_is_better() -> None:
    state, groups = chain(5, 16, 12, 3)
    order = random_permutations(groups, draws(3))
    copy = permuted(state, groups, [each.argsort() for each in order])
    found = match_weights(state, copy, groups, draws(), order)
    assert found.sweeps == 1
    assert all(torch.equal(a, b) for a, b in zip(found.permutations, order, strict=True))


def test_equal_units_keep_the_order_they_have() -> None:
    state, groups = chain(4, 8, 3)
    state["0.weight"][:] = state["0.weight"][0]
    state["0.bias"][:] = 0
    state["1.weight"][:] = state["1.weight"][:, :1]
    found = match_weights(state, state, groups, draws())
    assert found.permutations[0].tolist() == list(range(8))


def test_search_that_is_cut_short_says_so() -> None:
    (here, groups), (there, _) = chain(4, 20, 20, 2), chain(4, 20, 20, 2, seed=9)
    assert not match_weights(here, there, groups, draws(), max_sweeps=1).converged
    assert match_weights(here, there, groups, draws()).converged


def test_neither_state_is_changed() -> None:
    (here, groups), (there, _) = chain(4, 8, 2), chain(4, 8, 2, seed=5)
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in (here, there)]
    match_weights(here, there, groups, draws())
    for state, copy in zip((here, there), copies, strict=True):
        assert all(torch.equal(state[name], copy[name]) for name in state)
