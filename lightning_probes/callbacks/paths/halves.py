"""The network without some of its units: which ones can be asked for, its parameters, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from lightning_probes.callbacks.paths.batch_norm import recalibrated_buffers
from lightning_probes.callbacks.paths.path import BatchNormMode
from lightning_probes.callbacks.paths.units import parameters_of
from lightning_probes.functional.units.dropping import Layer, without_units
from lightning_probes.probing.price import Price
from lightning_probes.probing.values import check_choice, check_number, check_switch, check_whole_number, refuse
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray, Scalar

Kept: TypeAlias = Mapping[str, Tensor]
"""Which units stay, by the name of the group."""
Case: TypeAlias = tuple[Sequence[Layer], Kept]
"""Layers to drop units of, and which units stay."""


def check_halves(fraction: float, halves: int, rescale: bool, batch_norm: BatchNormMode) -> None:
    """The arguments of halves are what they can be.

    Raises:
        ValueError: If one is not; names it.
    """
    check_number("fraction", fraction, least=0)
    if fraction >= 1:
        refuse("fraction", "a number of at least 0 and below 1", fraction)
    check_whole_number("halves", halves, least=1)
    check_switch("rescale", rescale)
    check_choice("batch_norm", batch_norm, ("recalibrate", "eval"))


def price_of_halves(halves: int, per_layer: bool, batch_norm: BatchNormMode) -> list[Price]:
    """A pass for each network, and with BatchNorm one more to re-estimate it."""
    layer = 1 + halves * per_layer
    items = [Price(forward=1 + halves, copies=2), Price(forward=layer, each="layer of units")]
    if batch_norm == "recalibrate":
        items.append(Price(forward=1 + halves, only="with BatchNorm"))
        items.append(Price(forward=layer, only="with BatchNorm", each="layer of units"))
    return items


def network(view: ModelView, case: Case | None, rescale: bool, batch_norm: BatchNormMode) -> dict[str, Tensor]:
    """Parameters, and re-estimated buffers, of the network without some units of some layers; None drops none."""
    params = parameters_of(view)
    if case is not None:
        layers, kept = case
        params = without_units(params, [group for layer in layers for group in layer.groups], kept, rescale)
    return params | recalibrated_buffers(view, params) if batch_norm == "recalibrate" else params


def mean_over_halves(key: str, values: FloatArray, detail: bool = False) -> Scalar:
    """The mean over halves, and its standard error if there are several."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return Scalar(key, values.mean(), error, detail)
