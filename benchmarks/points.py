"""The loss at points in parameter space: by plain PyTorch, and as `loss-landscapes` is given it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.models import cross_entropy
from benchmarks.tasks import Prepare, Run
from benchmarks.work import Work, forward_pass

State = Mapping[str, Tensor]


def forward_passes(count: int) -> Prepare:
    """So many forward passes over the samples, as a plain pass."""

    def prepare(work: Work) -> Run:
        once = forward_pass(work)

        def run() -> None:
            for _ in range(count):
                once()

        return run

    return prepare


@torch.no_grad()
def loss_at(work: Work, params: State, recalibrate: bool = True) -> float:
    """The mean loss with some parameters, by their names in the network, written into a copy of it.

    BatchNorm is as a first pass over the samples has it, or as training left it.
    """
    net = copy.deepcopy(work.net)
    for name, param in net.named_parameters():
        if name in params:
            param.copy_(params[name])
    if recalibrate:
        _recalibrate(net, work)
    parts = [cross_entropy(net(inputs), targets).item() * len(inputs) for inputs, targets in work.batches]
    return sum(parts) / work.samples


def losses_on_line(work: Work, start: nn.Module, end: nn.Module, points: int) -> Any:
    """The mean loss on the line between two networks, point by point."""
    first, last = dict(start.named_parameters()), dict(end.named_parameters())
    return np.array([
        loss_at(work, {name: (1 - alpha) * first[name].double() + alpha * last[name].double() for name in last})
        for alpha in np.linspace(0, 1, points)
    ])  # fmt: skip


def peer_on_line(work: Work, start: nn.Module, end: nn.Module, points: int) -> Run:
    """`loss-landscapes` on the same line. It never evaluates the start: one step fewer gives all the other points."""
    import loss_landscapes as library

    metric = peer_metric(work)
    return lambda: library.linear_interpolation(start, end, metric, steps=points - 1, deepcopy_model=True)


def peer_metric(work: Work) -> Any:
    """The mean loss, as `loss-landscapes` asks for it."""
    from loss_landscapes.metrics import Metric

    class MeanLoss(Metric):  # type: ignore[misc]
        @torch.no_grad()
        def __call__(self, model: Any) -> float:
            losses = [
                cross_entropy(model.forward(inputs), targets).item() * len(inputs) for inputs, targets in work.batches
            ]
            return sum(losses) / work.samples

    return MeanLoss()


def difference(work: Work, value: Any, exact: Any) -> float:
    """Largest difference over the largest loss. A tool that leaves out the first points is not asked for them."""
    compared = exact[len(exact) - len(value) :]
    return float(np.abs(value - compared).max() / np.abs(exact).max())


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
