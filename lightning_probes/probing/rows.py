"""Rows of all samples of a probe set, where each process has those of its own micro-batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_probes.functional.wide import widest
from lightning_probes.probing.view import ModelView


def rows_of_all(view: ModelView, own: Mapping[int, Tensor], width: int, split: str | None = None) -> Tensor:
    """One row for every sample of a probe set, in every process: for what sums can't give, such as medians.

    The rows are in the order of the micro-batches, so several processes get bit for bit what one process gets.

    Args:
        view: The model and its data.
        own: Rows of this process's micro-batches, (samples, width), by the index of the micro-batch.
        width: Number of columns, which a process without micro-batches can't know.
        split: Name of the probe set; by default the first.

    Returns:
        (samples, width) in float64, on the device of the model if it has float64, else on the CPU.
    """
    sizes = view.probe_set(split).sizes
    device = view.device if widest(view.device) is torch.float64 else torch.device("cpu")
    rows = torch.zeros(sum(sizes), width, dtype=torch.float64, device=device)
    places = torch.split(rows, [*sizes])
    for index, part in own.items():
        places[index].copy_(part.detach().to(device))  # a device without float64 can't convert while it copies
    return view.sum_over_processes(rows)
