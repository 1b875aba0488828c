"""Groups of exchangeable units of any module, found during one pass over two samples.

Whatever code a module runs, it ends in operations of ATen. A label for each index along each axis of each parameter
follows the tensors through these operations. Labels that meet belong to one unit: row k of a weight, entry k of its
bias, column k of the next weight. Labels that meet what does not move, such as pixels or classes, can't be exchanged.
Units that are alike in all this can be: a permutation of them does not change the function (Ainsworth, Hayase &
Srinivasa 2023, arXiv:2209.04836, list such groups by hand for a few networks).

What is found keeps the function, but is not all that does: the heads of attention are not exchanged with one another,
and no transformation but permutations is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_probes.functional.units.check import Everyone, alone, sound_groups
from lightning_probes.functional.units.classes import groups_of
from lightning_probes.functional.units.groups import Group
from lightning_probes.functional.units.trace import Run, separate_operations, tensors, trace


@dataclass(frozen=True)
class Found:
    """Groups of exchangeable units of a module.

    Attributes:
        groups: In the order of the state.
        unknown: Operations without a rule that units entered. These units can't be exchanged.
        dropped: Names of groups that the check has dropped.
    """

    groups: tuple[Group, ...]
    unknown: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def find_groups(state: Mapping[str, Tensor], run: Run, everyone: Everyone = alone) -> Found:
    """Find the groups of exchangeable units of a module.

    Every group found is tried out: a random permutation of all of them must leave what the pass returns as it is.
    Groups that do not, because the pass left PyTorch's dispatcher (for NumPy, say), are dropped and named. The state
    in which they are tried out has the same numbers in other places, so `run` must not fail for it.

    Args:
        state: Parameters and running statistics of BatchNorm by name. What is missing here never moves.
        run: One pass over two samples with these tensors, such as `lambda state: functional_call(module, state, (x,))`.
            It returns a tensor or containers of tensors, such as logits: all that the module says about the samples.
            Along the axes of these tensors nothing is exchanged. It must be a function of the state alone; random
            numbers are the same in each call.
        everyone: Given a value, returns the values of all processes by rank, if several search at once. Then they make
            the same passes, which matters if the passes exchange tensors, and find the same groups.

    Returns:
        The groups. Cost: three passes without gradients, more if groups are dropped. The activations of the first are
        kept in memory until it is over.

    Raises:
        ValueError: If `run` returns no tensor.

    Example:
        >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> state, samples = dict(module.named_parameters()), torch.randn(2, 3)
        >>> found = find_groups(state, lambda state: torch.func.functional_call(module, state, samples))
        >>> [(group.name, group.size, list(group.slices)) for group in found.groups]
        [('0', 8, [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)])]
    """

    def repeatable(state: Mapping[str, Tensor]) -> Any:
        with _restored_random_numbers(state):
            return run(state)

    with torch.no_grad(), separate_operations():
        traced = trace(state, repeatable)
        if not tensors(traced.output):
            raise ValueError(
                f"run must return a tensor, or containers of tensors, found {type(traced.output).__name__}: return the "
                "logits of two samples."
            )
        groups = everyone(groups_of(traced))[0]
        sound = sound_groups(state, repeatable, traced.output, groups, everyone)
    kept = {group.name for group in sound}
    return Found(tuple(sound), traced.unknown, tuple(group.name for group in groups if group.name not in kept))


@contextmanager
def _restored_random_numbers(state: Mapping[str, Tensor]) -> Iterator[None]:
    devices = {tensor.device.index for tensor in state.values() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        yield
