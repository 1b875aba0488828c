"""Time to the largest Hessian eigenvalue at equal error, against PyHessian."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from benchmarks.cells import Row, reference
from benchmarks.models import cross_entropy
from benchmarks.tasks.lambda_max import error, ours
from benchmarks.timing import alternate
from benchmarks.work import load, twice_differentiable

_MOST_ITERATIONS = 1000


def against_pyhessian(model: str, directory: Path, rounds: int, scale: float, limit: float) -> Row:
    """Ours at its defaults; PyHessian with as many iterations as it takes to the error that ours has.

    Its own stopping rule looks at the change between two iterations, which says little about the error, so it is given
    the number of iterations instead: no setting of it can be faster. Where it has not got there in half of
    `limit`, it is compared as it is then, at a larger error, to its advantage.
    """
    from pyhessian import hessian

    exact = reference("lambda_max", model, directory, scale)
    work = load(model, directory, True, scale)
    run = ours("event")(work)
    reached = max(error(work, run(), exact), 1e-6)
    iterations = _iterations_needed(model, directory, scale, exact, reached, limit / 2)

    def other() -> float:
        torch.manual_seed(0)
        with twice_differentiable():
            matrix = hessian(work.net, cross_entropy, dataloader=work.batches, cuda=torch.cuda.is_available())
            return float(matrix.eigenvalues(maxIter=iterations, tol=0)[0][0])

    other_error = error(work, other(), exact)
    timing = alternate(other, run, max(2, rounds // 2), limit=limit)
    return {
        "ratio": timing.ratio, "seconds": statistics.median(timing.tool), "error": reached,
        "other_seconds": statistics.median(timing.plain), "other_error": other_error, "iterations": iterations,
    }  # fmt: skip


def _iterations_needed(model: str, directory: Path, scale: float, exact: float, reached: float, limit: float) -> int:
    """How many iterations PyHessian needs, or does in `limit` seconds; seen by looking at each product it takes."""
    from pyhessian import hessian

    work = load(model, directory, True, scale)
    seen: list[float] = []
    own = hessian.dataloader_hv_product

    def watched(self: object, vector: object) -> tuple[float, object]:
        value, product = own(self, vector)
        seen.append(value)
        if abs(value - exact) <= reached * abs(exact) or time.perf_counter() - start > limit:
            raise StopIteration
        return value, product

    start = time.perf_counter()
    torch.manual_seed(0)
    hessian.dataloader_hv_product = watched
    try:
        with twice_differentiable():
            matrix = hessian(work.net, cross_entropy, dataloader=work.batches, cuda=torch.cuda.is_available())
            matrix.eigenvalues(maxIter=_MOST_ITERATIONS, tol=0)
    except StopIteration:
        pass
    finally:
        hessian.dataloader_hv_product = own
    return max(2, len(seen))
