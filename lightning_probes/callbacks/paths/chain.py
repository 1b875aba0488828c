"""Whether the construction of Kuditipudi et al. 2019 (arXiv:1906.06247) applies to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from lightning_probes.callbacks.paths.droppable import Droppable
from lightning_probes.callbacks.paths.units import parameters_of
from lightning_probes.functional.likelihood import Likelihood, LikelihoodName
from lightning_probes.functional.likelihood_candidates import Clues, candidates, training_losses
from lightning_probes.functional.units.dropping import without_units
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.processes import is_out_of_memory
from lightning_probes.probing.view import ModelView

_ALIKE = 1e-4  # relative difference of what is equal up to rounding in float32


def has_bound(view: ModelView, units: Droppable, kept: Mapping[str, Tensor]) -> bool:
    """Whether the losses of a plain chain, with layers dropped from the last on, bound the loss on a path.

    The path moves units that nothing reads, which keeps the loss, and the last layer, in whose weights the loss is
    convex. So there must be room for a copy of the kept units, layers that follow one another and nothing else, units
    of a layer that do not see one another, and a loss that is convex in the logits. The last two are tried out at other
    parameters.

    Args:
        view: The model.
        units: The units to drop.
        kept: Which of them are kept.

    Returns:
        The same in every process. Cost: about seven passes over a micro-batch.
    """
    if units.left_out or any(2 * int(stays.sum()) > len(stays) for stays in kept.values()):
        return False
    last = _last_layer(view, units)
    if last is None:
        return False
    return _holds(view, lambda: _unread_units_are_free(view, units, kept)) and _holds(
        view, lambda: _is_convex(view, last)
    )


def _holds(view: ModelView, condition: Callable[[], bool]) -> bool:
    """Whether a condition holds in all processes, which all try it out: its passes may exchange tensors."""
    try:
        holds = condition()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        holds = False
    return all(view.processes.everyone(holds))


def _last_layer(view: ModelView, units: Droppable) -> list[str] | None:
    """Parameters of the last layer; None if the model is no plain chain of layers."""
    params = parameters_of(view)
    groups = units.groups
    if any(len(group.producers) != 1 or len(group.readers) != 1 for group in groups):
        return None
    for group in groups:
        for name, axis in (*group.producers, *group.readers):
            if group.slices[name, axis].numel() != params[name].shape[axis]:
                return None
    if any(here.readers[0][0] != there.producers[0][0] for here, there in pairwise(groups)):
        return None
    weights = [groups[0].producers[0][0], *(group.readers[0][0] for group in groups)]
    modules = {name.rpartition(".")[0] for name in weights}
    biases = [name for name in params if name not in weights]
    if any(params[name].ndim != 1 or name.rpartition(".")[0] not in modules for name in biases):
        return None
    if len(biases) > len(weights):
        return None
    last = weights[-1]
    return [last, *(name for name in biases if name.rpartition(".")[0] == last.rpartition(".")[0])]


def _unread_units_are_free(view: ModelView, units: Droppable, kept: Mapping[str, Tensor]) -> bool:
    """Whether the loss stays as it is if the units that nothing reads compute something else."""
    half = without_units(parameters_of(view), units.groups, kept)
    moved = dict(half)
    for group in units.groups:
        for (name, axis), indices in group.slices.items():
            if (name, axis) not in group.readers and name in moved:
                factors = torch.ones(moved[name].shape[axis])
                factors[indices[~kept[group.name]]] = -2.0
                shape = [-1 if each == axis else 1 for each in range(moved[name].ndim)]
                moved[name] = moved[name] * factors.to(moved[name]).reshape(shape)
    batch = view.probe_set().first
    return _alike(view.detached.loss(half, batch), view.detached.loss(moved, batch))


def _is_convex(view: ModelView, last: list[str]) -> bool:
    """Whether logits are affine in the last layer, and the loss is a negative log-likelihood of them."""
    params, batch = parameters_of(view), view.probe_set().first
    points = [{name: params[name] * factor for name in last} for factor in (1.0, 2.0, 3.0)]
    outputs = [view.detached.loss_and_logits(point, batch) for point in points]
    one, two, three = (on_host(logits) for _, logits, _ in outputs)
    _, logits, targets = outputs[0]
    if targets is None or not _alike(three - two, two - one):
        return False
    clues = Clues.of(view.module)
    for reading in _readings(logits, targets, clues):
        ways = [training_losses(reading, logits, targets, clues) for _, logits, _ in outputs]
        losses = on_host(torch.stack([loss for loss, _, _ in outputs]))
        if bool(torch.isclose(torch.stack(ways), losses[:, None], rtol=_ALIKE, atol=0).all(0).any()):
            return True
    return False


def _readings(logits: Tensor, targets: Tensor, clues: Clues) -> Iterator[Likelihood]:
    for name in get_args(LikelihoodName):
        try:
            yield from candidates(name, logits, targets, clues)
        except ValueError:  # no likelihood of this name fits
            continue


def _alike(here: Tensor, there: Tensor) -> bool:
    here, there = on_host(here), on_host(there)
    return bool((here - there).norm() <= _ALIKE * max(float(here.norm()), float(there.norm())))
