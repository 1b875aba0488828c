"""Exchangeable units of the model, as probes of this family use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_probes.callbacks.paths.path import running_statistics
from lightning_probes.functional.units.finding import Found, find_groups
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.processes import is_out_of_memory
from lightning_probes.probing.view import ModelView


def find_units(view: ModelView) -> Found:
    """Find the groups of exchangeable units in a pass of the loss over two samples; see `find_groups`.

    Every process gets the same groups, by the same passes. Cost: three passes over two samples, or over a micro-batch
    that can't be cut.
    """
    buffers = {name: view.module.get_buffer(name).detach() for name in running_statistics(view)}
    state, batch = {**parameters_of(view), **buffers}, _two_samples(view)

    def run(state: Mapping[str, Tensor]) -> Tensor:
        return view.detached.loss(state, batch)

    return view.processes.from_first(find_groups(state, run, view.processes.everyone))


def parameters_of(view: ModelView) -> dict[str, Tensor]:
    """All parameters as they are now, detached, by name (tied ones once)."""
    return {name: parameter.detach() for name, parameter in view.module.named_parameters()}


def _two_samples(view: ModelView) -> MicroBatch:
    """Two samples of the first micro-batch, or all of it if its tensors can't be cut alike."""
    batch = view.probe_set().first

    def first_two(tensor: Tensor) -> Tensor:
        return tensor[:2] if tensor.ndim and len(tensor) == batch.size else tensor

    cut = replace(batch, size=min(2, batch.size), content=tree_map_only(Tensor, first_two, batch.content))
    try:
        view.detached.loss({}, cut)
        fails = False
    except Exception as error:
        if is_out_of_memory(error):
            raise
        fails = True
    return batch if view.processes.any(fails) else cut
