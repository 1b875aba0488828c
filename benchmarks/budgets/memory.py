"""Whether memory follows the micro-batch, and not the number of samples."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cells import Row
from benchmarks.memory import peak_mib, return_memory
from benchmarks.tasks.fisher import ours
from benchmarks.work import load


def growth(model: str, directory: Path, scale: float) -> Row:
    """Peak of the Fisher trace on all samples over that on a quarter of them, in micro-batches of one size."""
    return_memory()
    peaks = []
    for factor in (0.25, 0.25, 1.0):  # the first time fills caches that stay
        work = load(model, directory, scale=scale)
        work.samples = int(factor * work.samples)
        peaks.append(peak_mib(ours("event")(work)) or float("nan"))
    return {"ratio": peaks[2] / peaks[1], "small": peaks[1], "large": peaks[2]}
