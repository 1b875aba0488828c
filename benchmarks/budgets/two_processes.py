"""Two processes with a thread each against one with one thread."""

from __future__ import annotations

import functools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.cells import Row
from benchmarks.models import cross_entropy
from benchmarks.ours import Ready, Results
from benchmarks.work import load
from lightning_probes import Curve, FisherTrace, Heatmap, InitInterpolation, LayerCKA, Probe, Scalar, Sharpness
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.processes import Processes


def loss(module: Any, batch: Any) -> torch.Tensor:
    return cross_entropy(module(batch[0]), batch[1])


PROBES: dict[str, Callable[..., Probe]] = {
    "fisher": FisherTrace,
    "cka": LayerCKA,
    "interpolation": functools.partial(InitInterpolation, num_alphas=5),
    "sharpness": functools.partial(Sharpness, quantities=("lambda_max",), loss_fn=loss),
}


def compare(name: str, model: str, directory: Path, rounds: int, scale: float) -> Row:
    """Seconds of two over seconds of one, and the largest relative difference of their results."""
    work = load(model, directory, name == "sharpness", scale)
    del work
    with tempfile.TemporaryDirectory() as place:
        mp.start_processes(
            _process, args=(Path(place), name, model, directory, rounds, scale), nprocs=2, start_method="spawn"
        )
        found: Row = torch.load(Path(place) / "found", weights_only=False)
    return found


def _process(rank: int, place: Path, name: str, model: str, directory: Path, rounds: int, scale: float) -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning_probes").setLevel(logging.ERROR)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    work = load(model, directory, name == "sharpness", scale)
    probe = PROBES[name](num_samples=work.samples, micro_batch_size=work.micro_batch_size)
    known = name in ("cka", "interpolation")
    shared = {"train": Drawing(work.samples, work.micro_batch_size, rank=rank, world_size=2).draw(work.loader)}
    both = Ready(probe, work, known, data=shared, processes=Processes(rank, 2))
    alone = Ready(PROBES[name](num_samples=work.samples, micro_batch_size=work.micro_batch_size), work, known)
    times: dict[str, list[float]] = {"one": [], "two": []}
    results: dict[str, Results] = {}
    for number in range(rounds + 1):
        for which, ready in (("one", alone), ("two", both)):
            ready.probe.carried = {}
            dist.barrier()
            start = time.perf_counter()
            if which == "two" or rank == 0:
                results[which] = ready.event()
            dist.barrier()
            if number:
                times[which].append(time.perf_counter() - start)
    if rank == 0:
        one, two = statistics.median(times["one"]), statistics.median(times["two"])
        difference = largest_difference(results["one"], results["two"])
        torch.save({"ratio": two / one, "seconds": two, "difference": difference}, place / "found")
    dist.barrier()
    dist.destroy_process_group()


def largest_difference(first: Results, second: Results) -> float:
    """Relative to the largest number of each result."""
    differences = [0.0]
    for key, result in first.items():
        if isinstance(result, (Scalar, Curve, Heatmap)):
            a, b = (np.asarray(_numbers(found)) for found in (result, second[key]))
            differences.append(float(np.nanmax(np.abs(a - b)) / max(1e-30, float(np.nanmax(np.abs(a))))))
    return max(differences)


def _numbers(result: Any) -> Any:
    if isinstance(result, Scalar):
        return result.value
    return result.y if isinstance(result, Curve) else result.values
