"""Norms of training's own gradients: a step at which they are read, over a step at which they are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.models import cross_entropy
from benchmarks.ours import ReadyMonitor
from benchmarks.tasks import Run, Task
from benchmarks.work import Work
from lightning_probes import GradientNorms

Read = Callable[[nn.Module], float]


def step(work: Work, read: Callable[[torch.optim.Optimizer, Callable[[], object]], float | None]) -> Run:
    """One training step on the first micro-batch, at a rate of 0, so that all steps are alike.

    Args:
        work: What to train.
        read: Given the optimizer and the call that takes the step; returns the norm of all gradients.
    """
    module = work.module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
    batch = work.batches[0]

    def run() -> float | None:
        optimizer.zero_grad()
        cross_entropy(module(batch[0]), batch[1]).backward()
        return read(optimizer, optimizer.step)

    return run


def plain(work: Work) -> Run:
    return step(work, lambda optimizer, take: take() and None)


def ours(**arguments: Any) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        ready = ReadyMonitor(GradientNorms(**arguments), work.module)
        return step(work, lambda optimizer, take: float(ready.event(optimizer, take)["gradients/global_norm"].value))

    return prepare


def before_step(read: Callable[[Work], Read]) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        norms = read(work)

        def of_step(optimizer: torch.optim.Optimizer, take: Callable[[], object]) -> float:
            found = norms(work.module)
            take()
            return found

        return step(work, of_step)

    return prepare


def number_by_number(work: Work) -> Read:
    """A norm and a read from the device for each parameter: norms alone, no zeros and no update."""

    def read(module: nn.Module) -> float:
        norms = {name: p.grad.norm().item() for name, p in module.named_parameters() if p.grad is not None}
        return math.hypot(*norms.values())

    return read


def all_numbers(work: Work) -> Run:
    """All that ours reports, likewise, number by number."""

    def of_step(optimizer: torch.optim.Optimizer, take: Callable[[], object]) -> float:
        params = {name: p for name, p in work.module.named_parameters() if p.grad is not None}
        before = {name: p.detach().clone() for name, p in params.items()}
        gradients = {name: p.grad for name, p in params.items() if p.grad is not None}
        norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
        zeros = sum((gradient == 0).sum().item() for gradient in gradients.values())
        take()
        weights = math.hypot(*(p.norm().item() for p in before.values()))
        update = math.hypot(*((p.detach() - before[name]).norm().item() for name, p in params.items()))
        work.extras["update ratio"], work.extras["zeros"] = update / weights, zeros
        return math.hypot(*norms.values())

    return step(work, of_step)


def composer(work: Work) -> Read:
    """Composer's monitor, given what it reads of Composer's state: norms alone, of each parameter and of all."""
    from composer.callbacks import OptimizerMonitor

    monitor, logged = OptimizerMonitor(batch_log_interval=1), {}
    logger: Any = SimpleNamespace(log_metrics=logged.update)
    timestamp = SimpleNamespace(batch=SimpleNamespace(value=0))

    def read(module: nn.Module) -> float:
        state: Any = SimpleNamespace(timestamp=timestamp, model=module, optimizers=[None], fsdp_enabled=False)
        monitor.batch_end(state, logger)
        return float(logged["l2_norm/grad/global"])

    return read


def reference(work: Work) -> float:
    """In double precision, from the gradients of one backward pass."""
    plain(work)()
    squares = [p.grad.double().square().sum().item() for p in work.module.parameters() if p.grad is not None]
    return math.sqrt(sum(squares))


TASK = Task(
    name="gradients",
    title="Norms of training's own gradients",
    pass_name="training step",
    plain=plain,
    tools={
        "ours": ours(),
        "a norm a parameter": before_step(number_by_number),
        "all numbers, one by one": all_numbers,
        "composer": before_step(composer),
    },
    reference=reference,
    error=lambda work, value, exact: abs(value - exact) / exact,
)
