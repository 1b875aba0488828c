"""The loss on the grid of a plane, and numbers that describe it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_probes.callbacks.paths.batch_norm import recalibrated_buffers
from lightning_probes.callbacks.paths.planes import Grid
from lightning_probes.functional.paths.curvature_of_plane import flat_share, nonconvexity
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result, Scalar, Surface


def landscape(view: ModelView, grid: Grid, recalibrate: bool, show: Callable[[int], None]) -> Iterator[Result]:
    """The surface of the loss, and what it says.

    Args:
        view: The model.
        grid: Where to evaluate it; one point is in memory at a time.
        recalibrate: Whether to re-estimate BatchNorm at each point.
        show: Is called with the number of points done.

    Yields:
        `loss`, `nonconvexity`, `flat_share`, `centre_loss`, and what is known of the plane.
    """
    losses, rounding = _losses(view, grid, recalibrate, show)
    centre, values = float(losses[0]), losses[1:].view(len(grid.y), len(grid.x))
    yield Surface("loss", grid.x, grid.y, values.numpy(), grid.path, *grid.labels, path_labels=grid.path_labels)
    steps = float(grid.x[1] - grid.x[0]), float(grid.y[1] - grid.y[0])
    yield Scalar("nonconvexity", nonconvexity(values, *steps, rounding=rounding))
    yield Scalar("flat_share", flat_share(values, centre), detail=True)
    yield Scalar("centre_loss", centre, detail=True)
    yield from grid.scalars


def _losses(view: ModelView, grid: Grid, recalibrate: bool, show: Callable[[int], None]) -> tuple[Tensor, float]:
    """The loss at the points of a grid, shape `(points,)`, float64; and its relative rounding error."""
    own: dict[int, list[Tensor]] = {batch.index: [] for batch in view.batches()}
    for done, point in enumerate(grid.points(), 1):
        state = {**point, **recalibrated_buffers(view, point)} if recalibrate else point
        for batch in view.batches():
            own[batch.index].append(view.detached.loss(state, batch))
        show(done)
    together = {index: torch.stack(losses) for index, losses in own.items()}
    dtypes = [losses.dtype for losses in together.values()]
    losses, sizes = view.of_all(together, shape=(len(grid),)), on_host(view.probe_set().sizes)
    # All processes sum up the same numbers, so the coarsest rounding among them counts; without batches it is unknown.
    rounding = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    return (losses * sizes[:, None]).sum(0) / sizes.sum(), max(view.processes.everyone(rounding))
