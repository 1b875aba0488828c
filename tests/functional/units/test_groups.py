from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_probes.functional.units.groups import Group, permuted, random_permutations


def rows(*units: list[int]) -> Tensor:
    return torch.tensor(units)


def hidden_units(count: int) -> Group:
    indices = torch.arange(count)[:, None]
    return Group("first", {("first.weight", 0): indices, ("first.bias", 0): indices, ("last.weight", 1): indices})


def network(count: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"first.weight": (count, 3), "first.bias": (count,), "last.weight": (2, count), "last.bias": (2,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def output(state: dict[str, Tensor]) -> Tensor:
    hidden = (torch.linspace(-1, 1, 3) @ state["first.weight"].T + state["first.bias"]).relu()
    return hidden @ state["last.weight"].T + state["last.bias"]


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_a_permutation_of_hidden_units_keeps_the_function(count: int, seed: int) -> None:
    group, state = hidden_units(count), network(count)
    [permutation] = random_permutations([group], torch.Generator().manual_seed(seed))
    torch.testing.assert_close(output(permuted(state, [group], [permutation])), output(state))


@given(st.integers(0, 2**32))
def test_groups_of_one_weight_are_permuted_together_as_one_after_the_other(seed: int) -> None:
    heads = [Group(name, {("weight", 0): rows(*units)}) for name, units in (("a", [[0, 4], [2, 3]]), ("b", [[1], [5]]))]
    state = {"weight": torch.arange(18.0).view(6, 3)}
    draws = torch.Generator().manual_seed(seed)
    orders = [*random_permutations(heads, draws), torch.randperm(3, generator=draws)]
    columns = Group("columns", {("weight", 1): torch.arange(3)[:, None]})
    groups, orders, expected = [*heads, columns, heads[0]], [*orders, orders[0]], state
    for group, order in zip(groups, orders, strict=True):
        expected = permuted(expected, [group], [order])
    assert torch.equal(permuted(state, groups, orders)["weight"], expected["weight"])


def test_unit_k_of_the_result_is_the_unit_that_the_permutation_names_k_th() -> None:
    group, state = hidden_units(5), network(5)
    permutation = torch.tensor([3, 1, 4, 0, 2])
    result = permuted(state, [group], [permutation])
    for (name, axis), _ in group.slices.items():
        assert torch.equal(result[name], state[name].index_select(axis, permutation))


def test_permutations_one_after_the_other_are_their_composition() -> None:
    group, state = hidden_units(9), network(9)
    first, second = random_permutations([group, group], torch.Generator().manual_seed(1))
    stepwise = permuted(permuted(state, [group], [first]), [group], [second])
    at_once = permuted(state, [group], [first[second]])
    assert all(torch.equal(stepwise[name], at_once[name]) for name in state)


def test_both_axes_of_a_square_weight_are_permuted() -> None:
    group = Group("square", {("weight", 0): rows([0], [1]), ("weight", 1): rows([0], [1])})
    result = permuted({"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, [group], [torch.tensor([1, 0])])
    assert result["weight"].tolist() == [[4.0, 3.0], [2.0, 1.0]]


def test_indices_of_a_unit_move_together_and_others_stay() -> None:
    group = Group("flat", {("weight", 1): rows([0, 1], [4, 3])})
    result = permuted({"weight": torch.arange(5.0)[None]}, [group], [torch.tensor([1, 0])])
    assert result["weight"].tolist() == [[4.0, 3.0, 2.0, 1.0, 0.0]]


def test_tensors_without_units_are_shared_and_the_state_is_left_alone() -> None:
    group, state = hidden_units(4), network(4)
    before = {name: tensor.clone() for name, tensor in state.items()}
    result = permuted(state, [group], [torch.tensor([1, 0, 3, 2])])
    assert result["last.bias"] is state["last.bias"]
    assert list(result) == list(state)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_slices_of_names_that_the_state_lacks_are_left_out() -> None:
    group, state = hidden_units(4), network(4)
    del state["first.bias"]
    assert "first.bias" not in permuted(state, [group], [torch.arange(4)])


def test_a_permutation_for_each_group_is_asked_for() -> None:
    with pytest.raises(ValueError, match="argument"):
        permuted(network(4), [hidden_units(4)], [])


def test_random_permutations_have_the_size_of_their_group() -> None:
    permutations = random_permutations([hidden_units(3), hidden_units(7)], torch.Generator().manual_seed(0))
    assert [permutation.sort().values.tolist() for permutation in permutations] == [list(range(3)), list(range(7))]
