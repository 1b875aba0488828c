"""Derivatives of the mean loss of a probe set, over its micro-batches and all processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_probes.functional.hvp import gradient, hvp, linearize
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.probing.view import ModelView

Matvec: TypeAlias = Callable[[Tensor], Tensor]


def mean_gradient(view: ModelView) -> Tensor:
    """Gradient of the mean loss, laid out as `to_vector(view.params)`: one forward and backward pass over the set."""
    params = view.params
    return view.mean(lambda batch: gradient(partial(view.loss, batch=batch), params)[1], like=to_vector(params))


def hessian(view: ModelView) -> Matvec:
    """The map v -> H v of the mean loss.

    Each product costs about two forward and backward passes over the set and the memory of one micro-batch. Where the
    whole set is one micro-batch, its graph is built once and kept as long as the map.
    """
    params, like = view.params, to_vector(view.params)
    if len(view.probe_set().sizes) == 1 and view.processes.size == 1:
        return linearize(partial(view.loss, batch=view.batches()[0]), params)
    return lambda vector: view.mean(lambda batch: hvp(partial(view.loss, batch=batch), params, vector), like)


def curvature_along(view: ModelView, direction: Tensor) -> Tensor:
    """Curvature v^T H_b v of every micro-batch's own loss along a unit vector, shape `(micro-batches,)`, float64."""
    params = view.params
    return view.per_batch(lambda batch: torch.dot(direction, hvp(partial(view.loss, batch=batch), params, direction)))
