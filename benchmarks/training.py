"""A whole training with all four probes at their defaults against one without, weights compared."""

from __future__ import annotations

import cProfile
import logging
import pstats
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cells import Row, apart
from benchmarks.models import MODELS, samples_for
from benchmarks.timing import now
from benchmarks.work import Lit
from lightning_probes import FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness

EPOCHS = {"mlp": 60, "conv1d": 60, "resnet20": 4}


def four() -> list[Probe]:
    return [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]


def fit(model: str, probes: list[Probe], epochs: int, samples: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Seconds of `trainer.fit`, and the weights that it ends with."""
    torch.manual_seed(0)
    module = Lit(MODELS[model]())
    generator = torch.Generator().manual_seed(2)
    train = DataLoader(TensorDataset(*samples_for(model, samples, generator)), batch_size=128, shuffle=True)
    val = DataLoader(TensorDataset(*samples_for(model, samples // 4, generator)), batch_size=128)
    with tempfile.TemporaryDirectory() as directory:
        trainer = L.Trainer(
            max_epochs=epochs, callbacks=list(probes), default_root_dir=directory, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, logger=False,
        )  # fmt: skip
        start = now()
        trainer.fit(module, train, val)
        seconds = now() - start
    return seconds, module.state_dict()


def compare(model: str, rounds: int, scale: float) -> Row:
    """Fits with and without in turn. Times of single probes are their own `<name>/seconds`."""
    for name in ("lightning.pytorch", "lightning_probes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    epochs, samples = EPOCHS.get(model, 4), int(4096 * scale)
    times: dict[str, list[float]] = {"without": [], "with": []}
    weights: dict[str, dict[str, torch.Tensor]] = {}
    spent: dict[str, str] = {}
    fit(model, [], 1, samples)
    for number in range(rounds):
        for which in ("without", "with") if number % 2 else ("with", "without"):
            probes = four() if which == "with" else []
            seconds, weights[which] = fit(model, probes, epochs, samples)
            times[which].append(seconds)
            for probe in probes:
                total = sum(entry[f"{probe.name}/seconds"] for entry in probe.history)
                spent[probe.name] = f"{probe.name} {total:.3g} s in {len(probe.history)} events"
    same = all(torch.equal(value, weights["with"][key]) for key, value in weights["without"].items())
    ratios = sorted(a / b for a, b in zip(times["with"], times["without"], strict=True))
    return {
        "seconds": statistics.median(times["with"]), "plain_seconds": statistics.median(times["without"]),
        "ratio": statistics.median(times["with"]) / statistics.median(times["without"]),
        "ratio_low": ratios[len(ratios) // 4], "ratio_high": ratios[(3 * len(ratios)) // 4],
        "same_weights": same, "how": f"{epochs} epochs of {samples} samples; {'; '.join(spent.values())}",
    }  # fmt: skip


def profile(model: str, lines: int = 40) -> str:
    """Where a fit with all probes spends its time, by functions."""
    profiler = cProfile.Profile()
    profiler.enable()
    fit(model, four(), 3, 1024)
    profiler.disable()
    with tempfile.TemporaryFile("w+") as stream:
        pstats.Stats(profiler, stream=stream).sort_stats("tottime").print_stats(lines)
        stream.seek(0)
        return stream.read()


def rows(options: Any, directory: Path) -> Iterator[Row]:
    """A row a model. A small model trains in seconds, so that what the probes cost shows most."""
    for model in EPOCHS:
        if model in options.models:
            arguments = (model, min(3, options.rounds), 0.25 if options.quick else 1.0)
            row: Row = {"task": "training", "what": f"{model}, four probes at their defaults"}
            yield row | apart(
                compare, *arguments, limit=10 * options.limit, threads=options.threads, clock=options.clock
            )
