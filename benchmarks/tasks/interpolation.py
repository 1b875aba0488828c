"""Loss on the line from the initialisation to now, at 25 points."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.models import cross_entropy
from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, forward_pass
from lightning_probes import Curve, InitInterpolation

POINTS = 25


def plain(work: Work) -> Run:
    once = forward_pass(work)

    def run() -> None:
        for _ in range(POINTS):
            once()

    return run


def ours(way: str, batch_norm: Any = "recalibrate") -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        probe = InitInterpolation(
            num_alphas=POINTS, batch_norm=batch_norm, num_samples=work.samples, micro_batch_size=work.micro_batch_size
        )
        ready = Ready(probe, work, with_init=True)
        return lambda: np.asarray(cast(Curve, getattr(ready, way)()["interpolation/loss"]).y)

    return prepare


def loss_landscapes(work: Work) -> Run:
    import loss_landscapes as library
    from loss_landscapes.metrics import Metric

    class MeanLoss(Metric):  # type: ignore[misc]
        @torch.no_grad()
        def __call__(self, model: Any) -> float:
            losses = [
                cross_entropy(model.forward(inputs), targets).item() * len(inputs) for inputs, targets in work.batches
            ]
            return sum(losses) / work.samples

    # It never evaluates the start, so one step fewer gives all the other points.
    return lambda: library.linear_interpolation(
        work.net_at_init, work.net, MeanLoss(), steps=POINTS - 1, deepcopy_model=True
    )


def reference(work: Work) -> Any:
    """Weights written into a copy of the network, point by point; BatchNorm as a first pass over the samples has it."""
    start, end = dict(work.net_at_init.named_parameters()), dict(work.net.named_parameters())
    losses = []
    with torch.no_grad():
        for alpha in np.linspace(0, 1, POINTS):
            net = copy.deepcopy(work.net)
            for name, param in net.named_parameters():
                param.copy_((1 - alpha) * start[name].double() + alpha * end[name].double())
            _recalibrate(net, work)
            parts = [cross_entropy(net(inputs), targets).item() * len(inputs) for inputs, targets in work.batches]
            losses.append(sum(parts) / work.samples)
    return np.array(losses)


def _recalibrate(net: nn.Module, work: Work) -> None:
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        for inputs, _ in work.batches:
            net(inputs)
    net.eval()


def error(work: Work, value: Any, exact: Any) -> float:
    compared = exact[len(exact) - len(value) :]
    return float(np.abs(value - compared).max() / np.abs(exact).max())


TASK = Task(
    name="interpolation",
    title=f"Interpolation, {POINTS} points",
    pass_name=f"{POINTS} forward",
    plain=plain,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, batch_norm='eval'": ours("event", "eval"),
        "loss-landscapes": loss_landscapes,
    },
    reference=reference,
    error=error,
    error_name="largest difference over largest loss",
    many_passes=True,
)
