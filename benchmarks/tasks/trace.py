"""Hessian trace by as many products for everybody: of random signs (Hutchinson), some of them of ours by Lanczos."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import cross_entropy
from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, hessian_product, twice_differentiable
from lightning_probes import Sharpness

PRODUCTS = 30
_REFERENCE_VECTORS = 150


def ours(work: Work) -> Run:
    probe = Sharpness(
        quantities=("trace",), num_samples=work.samples, micro_batch_size=work.micro_batch_size,
        loss_fn=lambda module, batch: cross_entropy(module(batch[0]), batch[1]),
    )  # fmt: skip
    ready = Ready(probe, work)

    def run() -> float:
        probe.carried = {}
        trace: Any = ready.event()["sharpness/trace"]
        work.extras["standard error"] = trace.standard_error
        return float(trace.value)

    return run


def pyhessian(work: Work) -> Run:
    from pyhessian import hessian

    def run() -> float:
        with twice_differentiable():
            data = {"data": work.batches[0]} if len(work.batches) == 1 else {"dataloader": work.batches}
            matrix = hessian(work.net, cross_entropy, **data, cuda=next(work.net.parameters()).is_cuda)
            return float(np.mean(matrix.trace(maxIter=PRODUCTS, tol=0)))

    return run


def eigenthings(work: Work) -> Run:
    from hessian_eigenthings.algorithms.trace import hutchinson
    from hessian_eigenthings.operators.hessian import HessianOperator

    def loss(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    def run() -> float:
        with twice_differentiable():
            return float(hutchinson(HessianOperator(work.net, work.batches, loss), num_samples=PRODUCTS).estimate)

    return run


def curvlinops(work: Work) -> Run:
    from curvlinops import HessianLinearOperator, hutchinson_trace

    from benchmarks.tasks.lambda_max import _Criterion

    def run() -> float:
        with twice_differentiable():
            params = list(work.net.parameters())
            operator = HessianLinearOperator(work.net, _Criterion(), params, work.batches, check_deterministic=False)
            return float(hutchinson_trace(operator, num_matvecs=PRODUCTS))

    return run


def reference(work: Work) -> tuple[float, float]:
    """Mean and standard error of many draws, by plain double backward."""
    params = list(work.net.parameters())
    generator = torch.Generator().manual_seed(11)
    vectors = [
        [torch.randint(2, param.shape, generator=generator).to(param) * 2 - 1 for param in params]
        for _ in range(_REFERENCE_VECTORS)
    ]
    draws = torch.zeros(_REFERENCE_VECTORS, dtype=torch.float64)
    with twice_differentiable():
        for inputs, targets in work.batches:
            loss = cross_entropy(work.net(inputs), targets) * len(inputs) / work.samples
            grads = torch.autograd.grad(loss, params, create_graph=True)
            for number, signs in enumerate(vectors):
                products = torch.autograd.grad(grads, params, signs, retain_graph=True, materialize_grads=True)
                draws[number] += sum((sign * part).sum().item() for sign, part in zip(signs, products, strict=True))
    return draws.mean().item(), draws.std().item() / _REFERENCE_VECTORS**0.5


def error(work: Work, value: float, exact: tuple[float, float]) -> float:
    work.extras["standard error of the reference"] = exact[1]
    return abs(value - exact[0]) / abs(exact[0])


TASK = Task(
    name="trace",
    title=f"Hessian trace, {PRODUCTS} products",
    pass_name="Hessian-vector product",
    plain=hessian_product,
    tools={"ours": ours, "pyhessian": pyhessian, "hessian-eigenthings": eigenthings, "curvlinops": curvlinops},
    reference=reference,
    error=error,
    error_name="relative error",
    many_passes=True,
)
