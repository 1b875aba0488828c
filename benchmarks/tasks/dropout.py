"""Loss of the network without half of its units, for 8 random halves and for the last layers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.ours import Ready
from benchmarks.points import forward_passes, loss_at
from benchmarks.tasks import Run, Task
from benchmarks.work import Work
from lightning_probes import DropoutStability, Scalar
from lightning_probes.callbacks.paths.droppable import Droppable, droppable_units
from lightning_probes.functional.units.dropping import Layer, random_kept

HALVES = 8


def plain(work: Work) -> Run:
    """A pass for the whole network, for each half, and for each choice of last layers."""
    return forward_passes(HALVES + len(_units(work)[1].layers))(work)


def ours(way: str, **arguments: Any) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        ready = _made(work, **arguments)
        work.extras["networks"] = HALVES + len(_units(work)[1].layers)
        keys = ("dropout/rise", "dropout/rise_best", "dropout/suffix_max")

        def run() -> Any:
            found = getattr(ready, way)()
            return np.array([cast(Scalar, found[key]).value for key in keys])

        return run

    return prepare


def masked_passes(work: Work) -> Run:
    """The same numbers by writing masked weights into a copy of the network, one after the other."""
    ready, units = _units(work)
    view, layers = ready.view(), units.layers
    halves = [random_kept(units.groups, 0.5, view.generator(number)) for number in range(HALVES)]

    def run() -> Any:
        whole = loss_at(work, {})
        rises = np.array([loss_at(work, _masked(work, layers, kept)) - whole for kept in halves])
        best = halves[int(rises.argmin())]
        suffixes = [loss_at(work, _masked(work, layers[k:], best)) - whole for k in range(1, len(layers))]
        return np.array([rises.mean(), rises.min(), max([rises.min(), *suffixes])])

    return run


def _made(work: Work, **arguments: Any) -> Ready:
    sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
    return Ready(DropoutStability(halves=HALVES, **sizes, **arguments), work)


def _units(work: Work) -> tuple[Ready, Droppable]:
    ready = _made(work)
    return ready, droppable_units(ready.view(), None)


@torch.no_grad()
def _masked(work: Work, layers: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with zeros where a dropped unit is read, and twice the number, or n/k times, where a kept one is."""
    params = {f"net.{name}": param.detach().double() for name, param in work.net.named_parameters()}
    for group in (group for layer in cast("list[Layer]", layers) for group in layer.groups):
        stays = kept[group.name]
        for name, axis in group.readers:
            weight = params[name].clone().movedim(axis, 0)
            weight[group.slices[name, axis][~stays].flatten()] = 0
            weight[group.slices[name, axis][stays].flatten()] *= len(stays) / int(stays.sum())
            params[name] = weight.movedim(0, axis)
    return {name.removeprefix("net."): param for name, param in params.items()}


TASK = Task(
    name="dropout",
    title=f"Dropout stability, {HALVES} halves",
    pass_name="one forward a network",
    plain=plain,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, batch_norm='eval'": ours("event", batch_norm="eval"),
        "masked passes": masked_passes,
    },
    reference=lambda work: masked_passes(work)(),
    error=lambda work, value, exact: float(np.abs(value - exact).max() / np.abs(exact).max()),
    error_name="largest difference over largest rise",
    many_passes=True,
)
