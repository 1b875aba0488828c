"""Kinks of the loss about the current parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.callbacks.paths.planes import along_random
from lightning_probes.functional.curvature.hvp import double_backward_kernels, gradient, hvp
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.functional.paths.kinks import kink_gap
from lightning_probes.probing.checks import blaming_derivatives
from lightning_probes.probing.view import ModelView


def why_no_gap(view: ModelView) -> str:
    """Why the kinks can't be measured: an empty text if they can."""
    params = view.params
    if any(p.is_complex() or torch.finfo(p.dtype).bits < 32 for p in params.values()):
        return "it needs real parameters in float32 or float64"
    if all(p.ndim < 2 for p in params.values()):
        return "there are no filters to give a direction a length"
    batch = view.probe_set().first
    try:
        with blaming_derivatives(MisconfigurationException), double_backward_kernels():
            hvp(partial(view.loss, batch=batch), params, torch.zeros_like(to_vector(params)))
    except (MisconfigurationException, ValueError) as error:
        return str(error)
    return ""


def measured_gap(view: ModelView) -> float | None:
    """The kink gap of the mean loss along a random direction; None if the loss is not curved along it.

    The step is 0.01 filter norms in float64, and 0.1 in float32, because differences of gradients are rounded.
    """
    params = view.params
    direction = next(along_random(view))
    along = to_vector({name: direction.get(name, torch.zeros_like(p)) for name, p in params.items()})

    def slope(at: Mapping[str, Tensor]) -> Tensor:
        return view.mean(lambda batch: gradient(partial(view.loss, batch=batch), at)[1], like=along)

    with double_backward_kernels():
        product = view.mean(lambda batch: hvp(partial(view.loss, batch=batch), params, along), like=along)
        if not product.any():
            return None
        return kink_gap(slope, product, params, direction, 1e-2 if along.dtype == torch.float64 else 1e-1)
