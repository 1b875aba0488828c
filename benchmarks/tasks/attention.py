"""Mean distance at which each attention head looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, forward_pass
from lightning_probes import AttentionDistance, Heatmap


def ours(way: str) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
        ready = Ready(AttentionDistance(data="train", **sizes), work)
        return lambda: np.asarray(cast(Heatmap, getattr(ready, way)()["attention/distance"]).values)

    return prepare


def own_weights(work: Work) -> Run:
    """Attention weights as `transformers` returns them, which takes its own implementation of attention.

    The plain formula: CLS is left out, and the other weights are divided by their sum.
    """
    model: Any = work.net.model
    model.set_attn_implementation("eager")
    argument: Any = work.net.argument

    @torch.no_grad()
    def run() -> Any:
        total: Any = 0
        for inputs, _ in work.batches:
            weights = model(**{argument: inputs}, output_attentions=True).attentions
            total = total + torch.stack([_distances(work.name, each.double()) for each in weights])
        return np.sort((total / work.samples).cpu().numpy(), 1)

    return run


def _distances(name: str, weights: Tensor) -> Tensor:
    """Sum over samples of the mean over queries, for each head: patches of 4 pixels of an image, or tokens."""
    if name == "vit":
        weights = weights[..., 1:, 1:]
        side = torch.arange(8.0, dtype=weights.dtype, device=weights.device) * 4
        places = torch.cartesian_prod(side, side)
    else:
        places = torch.arange(weights.shape[-1], dtype=weights.dtype, device=weights.device)[:, None]
    rows = (weights * torch.cdist(places, places)).sum(-1) / weights.sum(-1)
    return rows.mean(-1).sum(0)


TASK = Task(
    name="attention",
    title="Attention distance of every head",
    pass_name="forward",
    plain=forward_pass,
    tools={"ours": ours("event"), "ours, view ready": ours("measure"), "transformers' own weights": own_weights},
    reference=lambda work: own_weights(work)(),
    error=lambda work, value, exact: float(np.abs(value - exact).max() / exact.max()),
    error_name="largest difference over largest distance",
    models=("vit", "gpt2"),
)
