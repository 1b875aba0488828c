"""The other run with its units in the order in which they are most like those of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_probes.callbacks.paths.ends import State
from lightning_probes.callbacks.paths.path import BatchNormMode, Line
from lightning_probes.callbacks.paths.units import find_units
from lightning_probes.functional.finite import are_finite
from lightning_probes.functional.units.assignment import assignment
from lightning_probes.functional.units.correlation import correlations, pair_sums
from lightning_probes.functional.units.groups import Group, permuted
from lightning_probes.functional.units.matching import match_weights
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.seeding import derived_seed
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.values import check_choice, check_switch
from lightning_probes.probing.view import ModelView

Align: TypeAlias = Literal["weights", "activations"]
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Aligned:
    """The other end with permuted units.

    Attributes:
        state: The other end.
        moved_units: Share of the exchangeable units that have another place than before.
    """

    state: dict[str, Tensor]
    moved_units: float


def check_align(align: Align | None, repair: bool) -> None:
    """Check the arguments of matching.

    Raises:
        ValueError: If one is out of range; the message names it.
    """
    if align is not None:
        check_choice("align", align, ("weights", "activations"))
    check_switch("repair", repair)
    if repair and align is None:
        raise ValueError("repair=True may harm runs whose units are not matched: pass align='activations' with it")


def exchangeable(view: ModelView, say: Speaker) -> tuple[Group, ...]:
    """The groups of exchangeable units of the module; what is left out is reported."""
    found = find_units(view)
    if found.dropped:
        say.info(f"units that may not be exchanged are left as they are: {', '.join(found.dropped[:10])}")
    if not found.groups:
        say.info("no exchangeable units were found, so align= changes nothing")
    return found.groups


def aligned(
    view: ModelView, here: State, there: State, groups: Sequence[Group], how: Align, batch_norm: BatchNormMode,
    carried: dict[str, Any],
) -> Aligned:  # fmt: skip
    """Permute the units of the other end so that it comes close to this one, which stays as it is.

    Args:
        view: The model and its data.
        here: This run's end: parameters, and running statistics of BatchNorm, by name.
        there: The other run's.
        groups: Groups of exchangeable units of the module.
        how: By "weights" (Ainsworth, Hayase & Srinivasa 2023, arXiv:2209.04836), or by the correlations of the units'
            "activations" on the first probe set (Jordan et al. 2023, arXiv:2211.08403), at a cost of two passes.
        batch_norm: As for `Line`.
        carried: The probe's storage. By weights a measurement starts from the order that the one before has found.
    """
    there = {name: there[name].to(tensor) for name, tensor in here.items()}
    if not (are_finite(here) and are_finite(there)):  # a network that has diverged is like no other
        permutations: Sequence[Tensor] = [torch.arange(group.size) for group in groups]
    elif how == "weights":
        parameters = [name for name, _ in view.module.named_parameters() if name in here]
        mine, others = ({name: end[name] for name in parameters} for end in (here, there))
        generator = torch.Generator().manual_seed(derived_seed(view.seed, view.step, 4))
        permutations = match_weights(mine, others, groups, generator, _last_orders(groups, carried)).permutations
        carried.update({_key(group): order for group, order in zip(groups, permutations, strict=True)})
    else:
        line = Line(view, here, there, batch_norm)
        permutations = _by_outputs(view, [line.at(0.0), line.at(1.0)], groups)
    moved = sum(int((order != torch.arange(len(order))).sum()) for order in permutations)
    return Aligned(permuted(there, groups, permutations), moved / max(1, sum(group.size for group in groups)))


def _last_orders(groups: Sequence[Group], carried: Mapping[str, Any]) -> list[Tensor]:
    """The orders of units that the last measurement has found; as they are in the other run, where there is none."""
    orders = [carried.get(_key(group), torch.arange(group.size)) for group in groups]
    return [
        order if len(order) == group.size else torch.arange(group.size)  # another model since the checkpoint
        for group, order in zip(groups, orders, strict=True)
    ]


def _key(group: Group) -> str:
    return f"order of {group.name}"


def _by_outputs(view: ModelView, ends: Sequence[State], groups: Sequence[Group]) -> list[Tensor]:
    """The best assignment of each group's units by the correlations of what its producers give."""
    produced = _correlations(view, ends, _producers(view.module, groups))
    permutations = []
    for group in groups:
        gains = on_host(0.0).new_zeros(group.size, group.size)
        for axis in group.producers:
            if (found := produced.get(axis[0])) is not None and axis[1] == 0:
                for column in group.slices[axis].T:  # of gates packed in one weight a unit has several
                    gains += found[column][:, column]
        known = bool(gains.any() and gains.isfinite().all())  # outputs may overflow where weights do not
        permutations.append(assignment(gains) if known else torch.arange(group.size))
    return permutations


def _producers(module: nn.Module, groups: Sequence[Group]) -> dict[str, nn.Linear | _Convolution]:
    """The linear and convolutional layers whose outputs are units of the groups, by name of the weight."""
    names = {name for group in groups for name, axis in group.producers if axis == 0}
    return {
        f"{name}.weight": child
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear | _Convolution) and f"{name}.weight" in names
    }


def _correlations(
    view: ModelView, ends: Sequence[State], layers: Mapping[str, nn.Linear | _Convolution]
) -> dict[str, Tensor]:
    """Correlation of each output of one end's layers with each of the other's, over samples and positions."""
    sums: dict[str, Tensor] = {}
    for name, layer in layers.items():  # also of a layer that does not run, or of no batch in this process
        nothing = layer.weight.detach().new_zeros(0, len(layer.weight))
        sums[name] = pair_sums(nothing, nothing)
    for batch in view.batches():
        here, there = (_outputs(view, end, batch, layers) for end in ends)
        for name in here.keys() & there.keys():
            sums[name] += pair_sums(here[name], there[name])
    return {name: correlations(view.sum_over_processes(total)) for name, total in sums.items()}


def _outputs(
    view: ModelView, end: State, batch: MicroBatch, layers: Mapping[str, nn.Linear | _Convolution]
) -> dict[str, Tensor]:
    """What layers give for a micro-batch, `(samples and positions, units)` by name of the weight."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        units = output.detach()
        if isinstance(layer, _Convolution):
            units = units.movedim(1 - layer.weight.ndim, -1)
        parts = (units.real, units.imag) if units.is_complex() else (units,)
        found.setdefault(name, []).extend(part.reshape(-1, part.shape[-1]) for part in parts)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(keep, name)).remove)
        view.detached.run_layers(batch, end)
    return {name: torch.cat(outputs) for name, outputs in found.items()}
