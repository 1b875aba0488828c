"""What a search for groups leaves as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lightning_probes.functional.units.finding import find_groups

from .exchanging import groups_found, state_of
from .networks import ViT, mlp, randomised, samples


def settings() -> tuple[object, ...]:
    cuda = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled,
        cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(),
        torch.get_float32_matmul_precision(), torch.is_grad_enabled(), _get_current_dispatch_mode(),
    )  # fmt: skip


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_settings_of_the_process_are_restored(raises: bool, fast: bool) -> None:
    state = {"weight": torch.ones(3, 3)}

    def run(state: dict[str, Tensor]) -> Tensor:
        if raises:
            raise RuntimeError("of the module")
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.cudnn.enabled  # whose recurrent layers are one operation without a rule
        return state["weight"].sum()

    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(fast)
        expected = settings()
        if raises:
            with pytest.raises(RuntimeError, match="of the module"):
                find_groups(state, run)
        else:
            find_groups(state, run)
        assert settings() == expected
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_random_numbers_are_the_same_in_each_pass_and_afterwards() -> None:
    drawn, state = [], {"first": torch.rand(4), "last": torch.rand(4)}
    torch.manual_seed(7)
    expected = torch.get_rng_state()

    def run(state: dict[str, Tensor]) -> Tensor:
        drawn.append(torch.rand(1).item())
        return (state["first"] * state["last"]).sum()

    [group] = find_groups(state, run).groups
    assert group.size == 4
    assert len(set(drawn)) == 1
    assert torch.equal(torch.get_rng_state(), expected)


def test_the_module_and_its_state_are_left_alone() -> None:
    torch.manual_seed(0)
    module, x = randomised(ViT(norm_first=True)), samples("")
    state = state_of(module)
    before = {name: (id(tensor), tensor._version, tensor.detach().clone()) for name, tensor in state.items()}
    found = groups_found(module, x)
    assert found.groups
    after = state_of(module)
    assert all((id(after[name]), after[name]._version) == before[name][:2] for name in before)
    assert all(torch.equal(after[name], before[name][2]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_groups_are_found_in_inference_mode() -> None:
    module, x = mlp(), samples("")
    with torch.inference_mode():
        inside = groups_found(mlp(), x)
    assert [group.size for group in inside.groups] == [group.size for group in groups_found(module, x).groups]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_groups_are_found_in_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert [group.size for group in groups_found(mlp().to(dtype), samples("").to(dtype)).groups] == [32] * 3


def test_groups_of_a_diverged_module_are_checked_at_other_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    with torch.no_grad():
        module[0].bias.fill_(torch.nan)
    found = groups_found(module, torch.ones(2, 2))
    assert ([group.size for group in found.groups], found.dropped) == ([4], ())


class NeverFinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float("nan")


def test_a_pass_whose_output_is_never_finite_finds_nothing_that_it_could_check() -> None:
    found = groups_found(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2), NeverFinite()), torch.ones(2, 2))
    assert (found.groups, found.dropped) == ((), ("0",))
