"""Cost of an event against one size at a time: parameters, layers, samples, processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.budgets import two_processes
from benchmarks.cells import Row, apart
from benchmarks.models import MLP, cross_entropy
from benchmarks.ours import Ready
from benchmarks.timing import now
from benchmarks.work import Lit, Work
from lightning_probes import FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness

PROBES: dict[str, Callable[..., Probe]] = {
    "fisher": FisherTrace,
    "cka": lambda **sizes: LayerCKA(layers=["net.*"], **sizes),
    "interpolation": lambda **sizes: InitInterpolation(num_alphas=5, **sizes),
    "sharpness": lambda **sizes: Sharpness(quantities=("lambda_max",), loss_fn=_loss, **sizes),
}


def _loss(module: Any, batch: Any) -> torch.Tensor:
    return cross_entropy(module(batch[0]), batch[1])


def sweep(along: str) -> list[tuple[float, nn.Module, int]]:
    """Size, network and number of samples of every point of a line."""
    if along == "parameters":
        nets = [MLP(width, 4) for width in (128, 256, 512, 1024)]
        return [(sum(param.numel() for param in net.parameters()), net, 256) for net in nets]
    if along == "layers":
        return [(depth, MLP(256, depth), 256) for depth in (4, 8, 16, 32)]
    return [(samples, MLP(512, 4), samples) for samples in (128, 256, 512, 1024)]


def line(name: str, along: str, repeats: int) -> Row:
    """Seconds of an event of a probe at each size, the least of some repeats; and the exponent that fits them."""
    sizes, seconds = [], []
    for size, net, samples in sweep(along):
        torch.manual_seed(0)
        module = Lit(net)
        start = {key: value + 0.01 for key, value in module.state_dict().items()}
        ready = Ready(
            PROBES[name](num_samples=samples, micro_batch_size=64), Work("mlp", module, start, samples, 64), True
        )
        ready.event()
        times = []
        for _ in range(repeats):
            ready.probe.carried = {}
            begin = now()
            ready.event()
            times.append(now() - begin)
        sizes.append(size)
        seconds.append(min(times))
    return {"sizes": sizes, "seconds": seconds, "exponent": exponent(sizes, seconds)}


def processes(name: str, directory: Path, rounds: int, scale: float) -> Row:
    """The same against one and two processes with a thread each."""
    found = two_processes.compare(name, "mlp", directory, rounds, scale)
    seconds = [found["seconds"] / found["ratio"], found["seconds"]]
    return {"sizes": [1, 2], "seconds": seconds, "exponent": exponent([1, 2], seconds)}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the line that fits log seconds over log size by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return above / sum((a - x_mean) ** 2 for a in x)


def rows(options: Any, directory: Path) -> Iterator[Row]:
    """One row a line; a picture of all of them, unless nothing is to be written."""
    repeats = 2 if options.quick else options.rounds
    how: dict[str, Any] = {"limit": 4 * options.limit, "threads": options.threads, "clock": options.clock}
    found = []
    for along in ("parameters", "layers", "samples"):
        for name in PROBES:
            row: Row = {"task": "scaling", "tool": name, "what": along}
            found.append(row | apart(line, name, along, repeats, **how))
            yield found[-1]
    for name in PROBES:
        row = {"task": "scaling", "tool": name, "what": "processes"}
        arguments = (name, directory, repeats, 0.25 if options.quick else 1.0)
        found.append(row | apart(processes, *arguments, limit=4 * options.limit, threads=1))
        yield found[-1]
    if not options.dry and not options.check:
        from benchmarks.pictures import scaling

        scaling(found, options.page.parent / options.page.stem / "scaling.png")
