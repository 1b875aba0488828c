"""A fit with all four probes on a number of processes: `python -m tests.fit_in_processes DIRECTORY PROCESSES`.

Each process writes what its Trainer has in `callback_metrics`, and the curves and heatmaps that its probes hold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from lightning_probes import Curve, EveryNSteps, Heatmap, Probe
from tests.tester import PROBES, fit, probe
from tests.zoo import CASES

SAMPLES = 24  # three micro-batches: one process of two has more than the other


def probes() -> list[Probe]:
    """At step 0, since after it one process and two train on batches of different sizes; the line starts elsewhere."""
    start = CASES["cnn"].make().module
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(0.5)
    arguments: dict[str, dict[str, Any]] = {
        "fisher": {"per_layer": True},
        "sharpness": {"quantities": ("lambda_max", "sam", "trace")},
        "interpolation": {"init_state": start.state_dict()},
        "cka": {"init_state": start.state_dict(), "per_layer": True},
    }
    at_start = EveryNSteps(1, stop=0)
    return [probe(kind, num_samples=SAMPLES, schedule=at_start, **arguments[kind]) for kind in PROBES]


def main(directory: Path, processes: int) -> None:
    strategy = {"strategy": "ddp", "devices": processes} if processes > 1 else {}
    torch.manual_seed(0)
    measuring = probes()
    run = fit(CASES["cnn"].make, measuring, directory, max_steps=1, num_sanity_val_steps=0, **strategy)
    metrics = {key: float(value) for key, value in run.trainer.callback_metrics.items() if "/" in key}
    arrays = {}
    for each in measuring:
        for key, result in each.results.items():
            if isinstance(result, (Curve, Heatmap)):
                arrays[key] = (result.y if isinstance(result, Curve) else result.values).tolist()
    weights = float(sum(parameter.detach().double().abs().sum() for parameter in run.module.parameters()))
    content = {"metrics": metrics, "arrays": arrays, "weights": weights, "world": run.trainer.world_size}
    (directory / f"rank-{run.trainer.global_rank}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
