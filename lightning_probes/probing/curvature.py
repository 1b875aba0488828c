"""Loss, gradient and Hessian of a probe set, over its micro-batches and all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_probes.functional.hvp import Linearization, hvp, linearize
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.probing.data import MicroBatch
from lightning_probes.probing.processes import is_out_of_memory
from lightning_probes.probing.view import ModelView

Matvec: TypeAlias = Callable[[Tensor], Tensor]

_MOST_KEPT = 2**30  # bytes


class Curvature:
    """The mean loss of a probe set about the present parameters.

    One forward and one backward pass over the set give loss and gradient. Their graphs are kept for the Hessian-vector
    products, as many as a gigabyte holds, so that a product costs one more backward pass through both; for the other
    micro-batches it costs all three passes, and the memory of one micro-batch.

    Args:
        view: The model and the probe set.
        most_kept: Bytes of graphs to keep at most, in each process.

    Attributes:
        losses: Loss of every micro-batch on whichever process, shape `(micro-batches,)`, float64.
        gradient: Gradient of the mean loss, laid out as `to_vector(view.params)`.
    """

    def __init__(self, view: ModelView, most_kept: int = _MOST_KEPT) -> None:
        self._view, self._params = view, view.params
        self._kept: dict[int, Linearization] = {}
        self._room = most_kept
        losses = torch.zeros(len(view.probe_set().sizes), dtype=torch.float64, device=view.device)

        def gradient(batch: MicroBatch) -> Tensor:
            about = self._about(batch)
            losses[batch.index] = about.value.double()
            return about.gradient

        self.gradient = view.mean(gradient, like=to_vector(self._params))
        self.losses = view.sum_over_processes(losses)

    def matvec(self, vector: Tensor) -> Tensor:
        """The product of the Hessian of the mean loss with a vector."""
        return self._view.mean(lambda batch: self._product(batch, vector), like=vector)

    def along(self, direction: Tensor) -> Tensor:
        """Curvature v^T H_b v of every micro-batch's own loss along a vector, shape `(micro-batches,)`, float64."""
        return self._view.per_batch(lambda batch: torch.dot(direction, self._product(batch, direction)))

    def _about(self, batch: MicroBatch) -> Linearization:
        """A micro-batch's loss about the present parameters; its graph is kept if there is room."""
        with _counting_saved_bytes() as saved:
            about = linearize(partial(self._view.loss, batch=batch), self._params)
        if sum(saved.values()) <= self._room:
            self._room -= sum(saved.values())
            self._kept[batch.index] = about
        return about

    def _product(self, batch: MicroBatch, vector: Tensor) -> Tensor:
        if batch.index in self._kept:
            try:
                return self._kept[batch.index](vector)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self._kept.clear()  # what they hold is missing elsewhere
        return hvp(partial(self._view.loss, batch=batch), self._params, vector)


@contextmanager
def _counting_saved_bytes() -> Iterator[dict[int, int]]:
    """Bytes by storage of what autograd saves for a backward pass while the block runs."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
