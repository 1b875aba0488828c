"""Loss on the line to another run, at 11 points; before and after its units are matched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from benchmarks.ours import Ready
from benchmarks.points import difference, forward_passes, losses_on_line, peer_on_line
from benchmarks.tasks import Run, Task
from benchmarks.work import Work
from lightning_probes import Curve, ModeConnectivity

POINTS = 11


def ours(way: str, **arguments: Any) -> Callable[[Work], Run]:
    """The curve before matching, also where a second line is measured: that one has no reference of its own."""

    def prepare(work: Work) -> Run:
        probe = ModeConnectivity(
            work.other.module.state_dict(), num_alphas=POINTS, num_samples=work.samples,
            micro_batch_size=work.micro_batch_size, **arguments,
        )  # fmt: skip
        ready = Ready(probe, work)
        return lambda: np.asarray(cast(Curve, getattr(ready, way)()["connectivity/loss"]).y)

    return prepare


TASK = Task(
    name="connectivity",
    title=f"Mode connectivity, {POINTS} points",
    pass_name=f"{POINTS} forward",
    plain=forward_passes(POINTS),
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, batch_norm='eval'": ours("event", batch_norm="eval"),
        "ours, align='weights'": ours("event", align="weights"),
        "ours, align='activations'": ours("event", align="activations"),
        "loss-landscapes": lambda work: peer_on_line(work, work.net, work.other.net, POINTS),
    },
    reference=lambda work: losses_on_line(work, work.net, work.other.net, POINTS),
    error=difference,
    error_name="largest difference over largest loss",
    many_passes=True,
)
