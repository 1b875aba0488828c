"""BatchNorm statistics for parameters that were never trained, such as points between two states of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.view import ModelView


def batch_norms(view: ModelView) -> dict[str, _BatchNorm]:
    """The twin's BatchNorm layers that keep running statistics and are not frozen, by name."""
    return {
        name: child
        for name, child in view.module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats and name in view.twin.trained
    }


def check_recalibration(view: ModelView) -> None:
    """Check that every micro-batch is large enough to have a variance.

    Raises:
        MisconfigurationException: If a micro-batch has a single sample; the message names `micro_batch_size`.
    """
    if batch_norms(view) and min(view.probe_set().sizes) < 2:
        raise MisconfigurationException(
            "BatchNorm can't be re-estimated on a micro-batch of one sample: pass a larger micro_batch_size, or "
            "batch_norm='eval'"
        )


def recalibrated_buffers(view: ModelView, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Re-estimate running statistics at given parameters: reset, then averaged over the micro-batches of the probe set.

    Statistics from training fit other weights. With them a network between two trained ones is near chance (Jordan et
    al. 2023, arXiv:2211.08403).

    Args:
        view: The model and its data; the first probe set is used.
        params: Parameters by name.

    Returns:
        The buffers of the BatchNorm layers by name; empty without such layers. Cost: one forward pass over the set.

    Example:
        `losses = view.batch_losses({**params, **recalibrated_buffers(view, params)})`
    """
    layers = batch_norms(view)
    if not layers:
        return {}
    buffers = _fresh(layers)
    with _averaging(layers.values()):
        for batch in view.batches():
            _train(layers)
            view.detached.loss({**params, **buffers}, batch)
    return _mean_over_processes(view, buffers)


def loss_by_batch_statistics(view: ModelView, params: Mapping[str, Tensor], batch: MicroBatch) -> Tensor:
    """The loss of a micro-batch, normalised by its own statistics as in training; to be differentiated."""
    layers = batch_norms(view)
    _train(layers)
    return view.loss({**params, **_fresh(layers)}, batch)


def _train(layers: Mapping[str, _BatchNorm]) -> None:
    for layer in layers.values():
        layer.training = True  # the twin undoes this after the pass, and the momentum


def _fresh(layers: Mapping[str, _BatchNorm]) -> dict[str, Tensor]:
    fresh = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}
    return {
        f"{name}.{key}": torch.full_like(getattr(layer, key), value)
        for name, layer in layers.items()
        for key, value in fresh.items()
    }


@contextmanager
def _averaging(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Make running statistics the plain average over calls inside the block.

    The same as `momentum=None`, for which PyTorch would copy the number of calls from the device for each layer.
    """
    calls: Counter[nn.Module] = Counter()

    def average(layer: Any, _inputs: object) -> None:
        calls[layer] += 1
        layer.momentum = 1 / calls[layer]

    handles = [layer.register_forward_pre_hook(average) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mean_over_processes(view: ModelView, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean of the statistics over all micro-batches, from the averages of each process; counters do not change."""
    if view.processes.size == 1:
        return buffers
    means = {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
    parts = [torch.ones(1, device=view.device), *(buffer.flatten() for buffer in means.values())]
    total = view.sum_over_processes(torch.cat(parts) * len(view.batches()))
    count, *sums = torch.split(total, [len(part) for part in parts])
    shapes = zip(means.items(), sums, strict=True)
    return buffers | {name: (part / count).view_as(buffer).to(buffer) for (name, buffer), part in shapes}
