"""Largest Hessian eigenvalue, to equal error.

Every tool is given the loosest of its own stopping tolerances that reaches a relative error of `TARGET`; a tool that
reaches it with none has the error of its tightest one. Ours runs at its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import cross_entropy
from benchmarks.ours import Ready, counting_products
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, hessian_product, twice_differentiable
from lightning_probes import Sharpness

TARGET = 1e-3
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def ours(way: str, warm: bool = False) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        probe = Sharpness(
            quantities=("lambda_max",), num_samples=work.samples, micro_batch_size=work.micro_batch_size,
            loss_fn=lambda module, batch: cross_entropy(module(batch[0]), batch[1]),
        )  # fmt: skip
        ready = Ready(probe, work)

        def run() -> float:
            if not warm:
                probe.carried = {}
            counts: list[int] = []
            with counting_products(counts):
                results = getattr(ready, way)()
            work.extras["products"] = counts[0]
            work.extras["residual"] = results["sharpness/lambda_max_residual"].value
            return float(results["sharpness/lambda_max"].value)

        if warm:
            run()
            _train_on(work)
        return run

    return prepare


def pyhessian(work: Work) -> Run:
    from pyhessian import hessian

    def solve(tolerance: float) -> float:
        torch.manual_seed(0)
        with twice_differentiable():
            data = {"data": work.batches[0]} if len(work.batches) == 1 else {"dataloader": work.batches}
            matrix = hessian(work.net, cross_entropy, **data, cuda=next(work.net.parameters()).is_cuda)
            values, _ = matrix.eigenvalues(maxIter=400, tol=tolerance)
        return float(values[0])

    return tuned(work, solve, TOLERANCES)


def eigenthings(work: Work) -> Run:
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.operators.hessian import HessianOperator

    def loss(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch[1])

    def solve(iterations: float) -> float:
        with twice_differentiable():
            found = lanczos(
                HessianOperator(work.net, work.batches, loss), k=1, max_iter=int(iterations), which="LA", seed=0,
                reorthogonalize=True,
            )  # fmt: skip
        return float(found.eigenvalues[0])

    return tuned(work, solve, (5, 10, 15, 20, 30, 50))  # its stopping is by their number alone


def curvlinops(work: Work) -> Run:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    def solve(tolerance: float) -> float:
        with twice_differentiable():
            params = list(work.net.parameters())
            operator = HessianLinearOperator(work.net, _Criterion(), params, work.batches, check_deterministic=False)
            start = np.random.default_rng(0).standard_normal(operator.shape[0])
            return float(eigsh(operator.to_scipy(), k=1, which="LA", tol=tolerance, v0=start)[0][0])

    return tuned(work, solve, (1e-1, *TOLERANCES))


class _Criterion(torch.nn.CrossEntropyLoss):
    """By its type curvlinops knows the loss."""


def tuned(work: Work, solve: Callable[[float], float], tolerances: Iterable[float]) -> Run:
    """The loosest setting that reaches the target."""
    exact = work.extras["reference"]
    chosen = math.nan
    for chosen in tolerances:
        if abs(solve(chosen) - exact) <= TARGET * abs(exact):
            break
    work.extras["tolerance"] = chosen
    return lambda: solve(chosen)


def reference(work: Work) -> float:
    """ARPACK at a tight tolerance on products in double precision."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    params = list(work.net.double().parameters())
    batches = [(x.double() if x.is_floating_point() else x, y) for x, y in work.batches]
    total = sum(param.numel() for param in params)

    def product(vector: Any) -> Any:
        pieces = torch.as_tensor(vector.reshape(-1)).split([param.numel() for param in params])
        tangents = [piece.view_as(param).to(param) for piece, param in zip(pieces, params, strict=True)]
        result = torch.zeros(total, dtype=torch.float64)
        for inputs, targets in batches:
            grads = torch.autograd.grad(cross_entropy(work.net(inputs), targets), params, create_graph=True)
            parts = torch.autograd.grad(grads, params, tangents, materialize_grads=True)
            result += torch.cat([part.flatten() for part in parts]).cpu() * len(inputs) / work.samples
        return result.numpy()

    with twice_differentiable():
        operator = LinearOperator((total, total), matvec=product, dtype=np.float64)
        start = np.random.default_rng(1).standard_normal(total)
        value = eigsh(operator, k=1, which="LA", tol=1e-6, v0=start)[0][0]
    work.net.float()
    return float(value)


def error(work: Work, value: float, exact: float) -> float:
    return float("nan") if "value of" in work.extras else abs(value - exact) / abs(exact)


def _train_on(work: Work) -> None:
    """Ten steps of training, so that a later measurement starts from an eigenvector that is no longer exact."""
    optimizer = torch.optim.SGD(work.module.parameters(), lr=0.01)
    for step in range(10):
        work.module.training_step(work.batches[step % len(work.batches)], 0).backward()
        optimizer.step()
        optimizer.zero_grad()
    work.extras["value of"] = "the weights ten steps later"


TASK = Task(
    name="lambda_max",
    title="Largest Hessian eigenvalue",
    pass_name="Hessian-vector product",
    plain=hessian_product,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, second event": ours("event", warm=True),
        "pyhessian": pyhessian,
        "hessian-eigenthings": eigenthings,
        "curvlinops": curvlinops,
    },
    reference=reference,
    error=error,
    many_passes=True,
)
