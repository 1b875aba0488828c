"""What one event of each probe costs, in forward and backward passes over its samples."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cells import Row
from benchmarks.models import cross_entropy
from benchmarks.ours import Ready, counting_products
from benchmarks.timing import alternate
from benchmarks.work import backward_pass, load
from lightning_probes import FisherTrace, InitInterpolation, LayerCKA, Sharpness


def costs(model: str, directory: Path, rounds: int, scale: float, limit: float) -> Row:
    """Ratio of an event of every probe at its defaults to a plain pass. Sharpness: first event, and a later one."""
    found: Row = {}
    for name, many in (("fisher", False), ("cka", False), ("interpolation", False), ("sharpness", True)):
        work = load(model, directory, many, scale)
        sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
        kinds: dict[str, Any] = {"fisher": FisherTrace, "cka": LayerCKA, "interpolation": InitInterpolation}
        if name == "sharpness":
            probe: Any = Sharpness(loss_fn=lambda module, batch: cross_entropy(module(batch[0]), batch[1]), **sizes)
        else:
            probe = kinds[name](**sizes)
        ready = Ready(probe, work, with_init=name in ("cka", "interpolation"))
        counts: list[int] = []

        cold, later = partial(_event, ready, counts, warm=False), partial(_event, ready, counts, warm=True)
        cold()
        plain = backward_pass(work)
        plain()
        found[f"{name} first"] = found[name] = alternate(plain, cold, rounds, limit=limit).ratio
        if name == "sharpness":
            found["products first"] = counts[-1]
            found[name] = alternate(plain, later, rounds, limit=limit).ratio
            found["products"] = counts[-1]
    return found


def _event(ready: Ready, counts: list[int], warm: bool) -> None:
    """A warm one starts from the eigenvector that the event before left: exact here, while a fit moves it."""
    if not warm:
        ready.probe.carried = {}
    with counting_products(counts):
        ready.event()
