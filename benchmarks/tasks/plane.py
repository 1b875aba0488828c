"""Loss on a random plane, at 7 times 7 points and the centre, with the kinks along one direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from benchmarks.ours import Ready
from benchmarks.points import difference, loss_at, peer_metric
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, backward_pass, forward_pass, hessian_product
from lightning_probes import LossPlane, Surface
from lightning_probes.callbacks.paths.planes import along_random

RESOLUTION = 7
POINTS = RESOLUTION**2 + 1


def plain(work: Work) -> Run:
    """What the probe needs: a pass a point, and for the kinks a product and two gradients."""
    forward, backward, product = forward_pass(work), backward_pass(work), hessian_product(work)

    def run() -> None:
        for _ in range(RESOLUTION**2 + 1):
            forward()
        backward()
        backward()
        product()

    return run


def made(work: Work, **arguments: Any) -> Ready:
    sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
    return Ready(LossPlane(resolution=RESOLUTION, **sizes, **arguments), work)


def ours(way: str, **arguments: Any) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        ready = made(work, **arguments)
        return lambda: np.asarray(cast(Surface, getattr(ready, way)()["plane/loss"]).values).ravel()

    return prepare


def loss_landscapes(work: Work) -> Run:
    """Its plane is another one, through directions of its own: there is no error to report."""
    import loss_landscapes as library

    metric = peer_metric(work)

    def run() -> None:
        library.random_plane(work.net, metric, steps=RESOLUTION, normalization="filter", deepcopy_model=True)

    return run


def reference(work: Work) -> Any:
    """Weights moved along the probe's own two directions, written into a copy of the network point by point."""
    drawn = along_random(made(work).view())
    one, other = ({name.removeprefix("net."): t for name, t in next(drawn).items()} for _ in range(2))
    params, positions = dict(work.net.named_parameters()), np.linspace(-1, 1, RESOLUTION)
    return np.array([
        loss_at(
            work, {name: params[name].double() + x * one[name].double() + y * other[name].double() for name in one},
            recalibrate=False,
        )
        for y in positions for x in positions
    ])  # fmt: skip


TASK = Task(
    name="plane",
    title=f"Loss plane, {POINTS} points",
    pass_name=f"{POINTS} forward, 2 gradients, 1 Hessian-vector product",
    plain=plain,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, batch_norm='recalibrate'": ours("event", batch_norm="recalibrate"),
        "loss-landscapes": loss_landscapes,
    },
    reference=reference,
    error=lambda work, value, exact: float("nan") if value is None else difference(work, value, exact),
    error_name="largest difference over largest loss",
    many_passes=True,
)
