"""Groups of networks for which they are known."""

from __future__ import annotations

import pytest
import torch

from lightning_probes.functional.units.finding import find_groups
from lightning_probes.functional.units.groups import permuted

from .exchanging import change, groups_found, state_of
from .networks import KNOWN, LSTM, ResNet, ViT, cnn, mlp, randomised, samples

ROUNDING = 1e-5


@pytest.mark.parametrize("name", KNOWN)
def test_all_groups_are_found_and_a_permutation_of_their_units_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    build, groups, units = KNOWN[name]
    module, x = randomised(build()), samples(name)
    found = groups_found(module, x)
    assert (found.unknown, found.dropped) == ((), ())
    assert (len(found.groups), sum(group.size for group in found.groups)) == (groups, units)
    assert max(change(module, found, x, seed=seed) for seed in range(3)) < ROUNDING


@pytest.mark.parametrize("name", KNOWN)
def test_each_unit_of_a_group_counts(name: str) -> None:
    # A check of the check: had a group other columns than those that belong to its units, the output would change.
    torch.manual_seed(0)
    module, x = randomised(KNOWN[name][0]()), samples(name)
    found = groups_found(module, x)
    state = state_of(module)
    group = max(found.groups, key=lambda group: len(group.slices))
    name = list(group.slices)[-1][0]
    swapped = permuted(state, [group], [torch.arange(group.size).roll(1)])
    swapped[name] = state[name]
    with torch.no_grad():
        before, after = (torch.func.functional_call(module, some, x) for some in (state, swapped))
    assert (before - after).abs().max() > 100 * ROUNDING * before.abs().max()


def test_a_unit_of_a_flattened_feature_map_is_all_its_pixels() -> None:
    [_, second, _] = groups_found(randomised(cnn()), samples("")).groups
    assert second.slices["9.weight", 1].tolist() == torch.arange(64).reshape(16, 4).tolist()
    assert {name for name, _ in second.slices} == {
        "4.weight", "4.bias", "5.weight", "5.bias", "5.running_mean", "5.running_var", "9.weight",
    }  # fmt: skip


def test_a_unit_of_an_lstm_is_an_entry_of_each_gate() -> None:
    [group] = groups_found(randomised(LSTM()), samples("")).groups
    assert group.slices["lstm.weight_hh_l0", 0].tolist() == torch.arange(48).reshape(4, 12).T.tolist()
    assert group.slices["lstm.weight_hh_l0", 1].tolist() == torch.arange(12)[:, None].tolist()


def test_groups_say_which_weights_compute_their_units_and_which_read_them() -> None:
    first, second, third = groups_found(mlp(), samples("")).groups
    assert [group.name for group in (first, second, third)] == ["1", "3", "5"]
    assert (second.producers, second.readers) == ((("3.weight", 0),), (("5.weight", 1),))


def test_a_residual_stream_has_several_producers() -> None:
    stream = groups_found(randomised(ResNet(blocks=1)), samples("")).groups[0]
    assert stream.producers == (("stem.0.weight", 0), ("blocks.0.conv2.weight", 0))
    assert stream.readers == (
        ("blocks.0.conv1.weight", 1), ("blocks.1.conv1.weight", 1), ("blocks.1.shortcut.0.weight", 1),
    )  # fmt: skip


def test_attention_has_two_groups_a_head_of_which_queries_and_keys_have_no_reader() -> None:
    groups = groups_found(randomised(ViT(norm_first=True)), samples("")).groups
    heads = [group for group in groups if group.name.startswith("encoder.layers.0.self_attn")]
    assert [group.size for group in heads] == [4] * 8
    assert [group.name for group in heads[:2]] == ["encoder.layers.0.self_attn", "encoder.layers.0.self_attn#2"]
    assert (
        sorted(group.readers for group in heads)
        == [()] * 4 + [(("encoder.layers.0.self_attn.out_proj.weight", 1),)] * 4
    )
    together = heads[0].slices["encoder.layers.0.self_attn.in_proj_weight", 0]
    assert together.tolist() == [[k, 16 + k] for k in range(4)]


def test_one_tensor_under_two_names_is_permuted_under_both() -> None:
    first, last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)
    module, x = torch.nn.Sequential(first, torch.nn.ReLU(), last), torch.randn(2, 4)
    state = {**dict(module.named_parameters()), "again": first.weight}

    def run(state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(module, {k: v for k, v in state.items() if k != "again"}, x)

    [group] = find_groups(state, run).groups
    assert torch.equal(group.slices["again", 0], group.slices["0.weight", 0])
