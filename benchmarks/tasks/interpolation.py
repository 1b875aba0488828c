"""Loss on the line from the initialisation to now, at 25 points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from benchmarks.ours import Ready
from benchmarks.points import difference, forward_passes, losses_on_line, peer_on_line
from benchmarks.tasks import Run, Task
from benchmarks.work import Work
from lightning_probes import Curve, InitInterpolation

POINTS = 25


def ours(way: str, **arguments: Any) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
        probe = InitInterpolation(num_alphas=POINTS, **sizes, **arguments)
        ready = Ready(probe, work, with_init=True)
        return lambda: np.asarray(cast(Curve, getattr(ready, way)()["interpolation/loss"]).y)

    return prepare


TASK = Task(
    name="interpolation",
    title=f"Interpolation, {POINTS} points",
    pass_name=f"{POINTS} forward",
    plain=forward_passes(POINTS),
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, batch_norm='eval'": ours("event", batch_norm="eval"),
        "ours, linearized": ours("event", linearized=True),
        "loss-landscapes": lambda work: peer_on_line(work, work.net_at_init, work.net, POINTS),
    },
    reference=lambda work: losses_on_line(work, work.net_at_init, work.net, POINTS),
    error=difference,
    error_name="largest difference over largest loss",
    many_passes=True,
)
