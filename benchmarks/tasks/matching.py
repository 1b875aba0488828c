"""Permutation of another run's units that brings its weights close to this run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.points import forward_passes
from benchmarks.tasks import Run, Task
from benchmarks.work import Work
from lightning_probes.functional.units import matching
from lightning_probes.functional.units.finding import find_groups
from lightning_probes.functional.units.groups import Group, permuted

Assign = Callable[[Tensor], Tensor]


def with_assignment(assign: Assign) -> Callable[[Work], Run]:
    """Weight matching, with a solver of the assignment problem."""

    def prepare(work: Work) -> Run:
        here, there = _weights(work), _weights(work.other)
        groups = _finding(work)()
        work.extras |= {"groups": len(groups), "units": sum(group.size for group in groups)}

        def run() -> float:
            own = matching.assignment
            matching.assignment = assign  # type: ignore[assignment]
            try:
                found = matching.match_weights(here, there, groups, torch.Generator().manual_seed(0))
            finally:
                matching.assignment = own
            return _inner(here, permuted(there, groups, found.permutations))

        return run

    return prepare


def scipy(gains: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    return torch.as_tensor(linear_sum_assignment(gains.numpy(), maximize=True)[1])


def finding(work: Work) -> Run:
    """The search for the units that can be exchanged, in a pass over two samples and a second one that tries them."""
    find = _finding(work)

    def run() -> None:
        find()

    return run


def _finding(work: Work) -> Callable[[], tuple[Group, ...]]:
    samples = work.batches[0][0][:2]
    tensors = [*work.net.named_parameters(), *work.net.named_buffers()]
    state = {name: tensor.detach() for name, tensor in tensors if tensor.is_floating_point()}
    return lambda: find_groups(state, lambda state: torch.func.functional_call(work.net, state, (samples,))).groups


def _weights(work: Work) -> Mapping[str, Tensor]:
    return {name: param.detach() for name, param in work.net.named_parameters()}


def _inner(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> float:
    return sum(float((here[name].double() * there[name].double()).sum()) for name in here)


TASK = Task(
    name="matching",
    title="Units matched by their weights",
    pass_name="one forward",
    plain=forward_passes(1),
    tools={
        "ours": with_assignment(matching.assignment),
        "SciPy's assignment": with_assignment(scipy),
        "ours, finding units": finding,
    },
    reference=lambda work: with_assignment(scipy)(work)(),
    error=lambda work, value, exact: float("nan") if value is None else abs(value - exact) / abs(exact),
    error_name="difference of the inner product, relative to that with SciPy's assignment",
)
