"""Trying permutations out: groups that change what a pass returns are dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_probes.functional.units.groups import Group, permuted
from lightning_probes.functional.units.trace import Run, tensors

Everyone: TypeAlias = Callable[[Any], list[Any]]
TOLERANCE = 1e-4
_TRIALS = 3


def alone(value: Any) -> list[Any]:
    """The values of all processes if there is one."""
    return [value]


def sound_groups(
    state: Mapping[str, Tensor], run: Run, expected: Any, groups: Sequence[Group], everyone: Everyone = alone
) -> list[Group]:
    """The groups of which a permutation leaves the output as it is.

    They are tried out on the state with its numbers in other places. There no sample is learnt, whose loss would be
    little but the rounding of its logits. If the output changes, this is repeated where it is larger.

    Args:
        state: Of the module.
        run: One pass.
        expected: What it returns for this state. If nothing of it is finite, because training has diverged, random
            numbers take the state's place.
        groups: Those to try out: all at once, then in halves as long as the output changes.
        everyone: The values of all processes that call this at once. They make the same passes and get the same groups.

    Returns:
        Groups that keep the output to a relative error of 1e-4, or of a few roundings in half precision. Cost: two
        passes, if all of them do, and one more if training has diverged.
    """
    if not groups:
        return []
    generator = torch.Generator().manual_seed(0)
    if not all(everyone(any(bool(output.isfinite().any()) for output in tensors(expected)))):
        state = _drawn(state, generator)
        expected = run(state)
    cycles = {id(group): _random_cycle(group.size, generator) for group in groups}
    tolerance = max([TOLERANCE, *(4 * torch.finfo(t.dtype).eps for t in state.values() if t.is_floating_point())])

    def sound_at(place: Mapping[str, Tensor], output: Any) -> list[Group]:
        def keep(some: Sequence[Group]) -> bool:
            moved = permuted(place, some, [cycles[id(group)] for group in some])
            return all(everyone(_equal(output, run(moved), tolerance)))

        sound = _bisected(groups, keep)
        # Groups that are sound each may still not be together.
        return sound if len(sound) == len(groups) or keep(sound) else []

    sound, largest = list[Group](), -1.0
    for trial in range(_TRIALS + 1):
        place = _elsewhere(state, generator) if trial < _TRIALS else state
        output = run(place) if trial < _TRIALS else expected
        if (size := min(everyone(max(map(_largest, tensors(output)))))) > largest:
            largest, sound = size, sound_at(place, output)
        if len(sound) == len(groups):
            break
    return sound


def _elsewhere(state: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """A state of the same numbers, each tensor's moved on along each of its axes by random distances."""
    moved = dict(state)
    for name, tensor in state.items():
        if tensor.ndim and tensor.numel():
            distances = [int(torch.randint(size, (), generator=generator, device="cpu")) for size in tensor.shape]
            moved[name] = tensor.roll(distances, tuple(range(tensor.ndim)))
    return moved


def _drawn(state: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Random numbers like those of a fresh network: weights with a variance of 1 / fan-in, vectors about 1."""

    def like(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        if tensor.ndim < 2:  # scales, shifts and variances
            return (torch.rand(tensor.shape, generator=generator, device="cpu") + 0.5).to(tensor)
        drawn = torch.randn(tensor.shape, generator=generator, device="cpu")
        fan_in = tensor[0].numel() if len(tensor) else 1
        return (drawn * math.sqrt(1 / max(1, fan_in))).to(tensor)

    return {name: like(tensor) for name, tensor in state.items()}


def _bisected(groups: Sequence[Group], keep: Callable[[Sequence[Group]], bool]) -> list[Group]:
    if not groups or keep(groups):
        return list(groups)
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    return [*_bisected(groups[:half], keep), *_bisected(groups[half:], keep)]


def _random_cycle(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation that moves every unit."""
    order = torch.randperm(size, generator=generator, device="cpu")
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)
    return cycle


def _equal(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether outputs are equal up to rounding. Without a finite number there is nothing to compare."""
    pairs = list(zip(tensors(expected), tensors(found), strict=True))
    return all(
        one.shape == other.shape and _close(one.detach(), other.detach(), tolerance) for one, other in pairs
    ) and any(bool(one.isfinite().any()) for one, _ in pairs)


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    one, other = one[finite], other[finite]
    return not one.numel() or bool((one - other).abs().max() <= tolerance * one.abs().max())


def _largest(output: Tensor) -> float:
    finite = output.detach()[output.detach().isfinite()]
    return float(finite.abs().max()) if finite.numel() and finite.dtype != torch.bool else 0.0
