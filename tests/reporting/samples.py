"""A probe's measurements and panels of every kind, made up."""

from __future__ import annotations

import numpy as np

from lightning_probes.reporting import Curves, HeatmapOverSteps, Heatmaps, Lines, Panel, Picture, Surfaces, pictures
from lightning_probes.results import Curve, Flag, Heatmap, Surface

NAME = "demo"
STEPS = (0, 10, 30)
ALPHAS = np.linspace(0.0, 1.0, 5)

PANELS: tuple[Panel, ...] = (
    Lines("trace_over_steps", "Trace", "With its band.", y="trace", reference=(3.0, "threshold")),
    Lines("trace_over_loss", "Trace at equal loss", y="trace", x="loss", x_label="loss (nats)"),
    Curves("path", "Loss along a path", "Descriptive. And more.", band=True),
    Heatmaps("layers", "Layers"),
    HeatmapOverSteps("to_init", "To initialisation"),
    Surfaces("plane", "Loss on a plane"),
    Surfaces("log_plane", "Loss on a plane, by orders of magnitude", "Its path has labels.", log=True),
)

HISTORY = [
    {"step": 0, "epoch": 0, "demo/trace": 4.0, "demo/trace_se": 0.5, "demo/loss": 2.0},
    {"step": 10, "epoch": 0, "demo/trace": 2.0, "demo/trace_se": 0.25, "demo/loss": 1.0},
    {"step": 30, "epoch": 1, "demo/trace": 1.0, "demo/trace_se": 0.125, "demo/loss": 1.5},
]

TRAIL = {
    "demo/path": [
        (step, Curve("path", ALPHAS, 2.0 - ALPHAS * (k + 1), "alpha", "loss (nats)", np.full(5, 0.1)))
        for k, step in enumerate(STEPS)
    ],
    "demo/layers": [
        (step, Heatmap("layers", [[1.0, 0.25 * k], [0.25 * k, 1.0]], ("a", "b"), ("a", "b")))
        for k, step in enumerate(STEPS)
    ],
    "demo/to_init": [
        (step, Heatmap("to_init", [[1.0 - 0.25 * k], [1.0]], ("a", "b"), ("similarity",)))
        for k, step in enumerate(STEPS)
    ],
    "demo/plane": [
        (
            step,
            Surface("plane", [0, 1, 2], [-1, 1], np.arange(6.0).reshape(2, 3) + k, [[0, 0]] * k, "distance", "across"),
        )
        for k, step in enumerate(STEPS)
    ],
    "demo/log_plane": [
        (
            step,
            Surface(
                "log_plane",
                [0, 1, 2],
                [-1, 0, 1],
                10.0 ** (np.arange(9.0).reshape(3, 3) - 4),
                [[0, -1], [1, 0.5], [1.02, 0.5], [2, 1]],
                path_labels=[f"step {k * j}" for j in range(4)],
            ),
        )
        for k, step in enumerate(STEPS)
    ],
}

UNSTABLE = Flag("demo/flag/unstable", True, 2.5, 2.0, "the step is too long")
NONFINITE = Flag("demo/flag/nonfinite", True, float("nan"), None, "not finite: demo/trace", level="info")


def picture(key: str) -> Picture:
    """The picture of one of the panels."""
    (found,) = (p for p in pictures(PANELS, NAME, HISTORY, TRAIL) if p.panel.key == key)
    return found
