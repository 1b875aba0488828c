"""Whether memory follows the micro-batch, and not the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.cells import Row
from benchmarks.memory import peak_mib, return_memory
from benchmarks.models import CLASSES, MODELS
from benchmarks.ours import Ready
from benchmarks.tasks.fisher import ours
from benchmarks.work import Lit, Work, load
from lightning_probes import FisherTrace, LayerCKA, Probe

_SAMPLES_OF_FISHER = 4096


def growth(model: str, directory: Path, scale: float) -> Row:
    """Peak of the Fisher trace on all samples over that on a quarter of them, in micro-batches of one size."""
    return_memory()
    peaks = []
    for factor in (0.25, 0.25, 1.0):  # the first time fills caches that stay
        work = load(model, directory, scale=scale)
        work.samples = int(factor * work.samples)
        peaks.append(peak_mib(ours("event")(work)) or float("nan"))
    return {"ratio": peaks[2] / peaks[1], "small": peaks[1], "large": peaks[2]}


def of_fisher(batch: int) -> Row:
    """Peak of the Fisher trace of a ResNet-18 on images of CIFAR size, dry run included, over the model.

    On one micro-batch and on four, and on as many samples as the line through both leads to: they take minutes.
    """
    module = Lit(MODELS["resnet18"]())
    small, large = _peaks("resnet18", module, FisherTrace, (batch, 4 * batch), batch)
    slope = (large - small) / (3 * batch)
    return {"small": small, "large": large, "all": large + slope * (_SAMPLES_OF_FISHER - 4 * batch), "batch": batch}


def of_cka(samples: int, batch: int) -> Row:
    """Peak of CKA of every layer with every layer and with its initialisation, of 150 layers, over the model.

    Half of them are narrower than a micro-batch of 128 samples is long, and half are wider.
    """
    widths = [40, *[32, 512] * 37, 32]
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    module = Lit(nn.Sequential(*parts[:149], nn.Linear(widths[-1], CLASSES)))
    every = partial(LayerCKA, layers=[f"net.{index}" for index in range(150)])
    return {"peak": _peaks("mlp", module, every, (samples,), batch)[0]}


def _peaks(data: str, module: Lit, make: Callable[..., Probe], numbers: Sequence[int], batch: int) -> list[float]:
    """GiB that a probe needs from its dry run to the end of an event, in micro-batches of the loader."""
    state = {name: value.clone() for name, value in module.state_dict().items()}

    def run(samples: int) -> Any:
        probe = make(num_samples=samples)
        return Ready(probe, Work(data, module, state, samples, batch), with_init=probe.needs_init_state).event()

    return_memory()
    run(8)  # the first time fills caches that stay
    peaks = [peak_mib(partial(run, number)) for number in numbers]
    return [float("nan") if peak is None else peak / 1024 for peak in peaks]
