"""What it costs to read labels off layers of 256 features."""

from __future__ import annotations

import statistics

import torch

from benchmarks.cells import Row
from benchmarks.models import MLP
from benchmarks.tasks.linear import made
from benchmarks.timing import alternate
from benchmarks.work import Lit, Work, forward_pass

_DEPTH = 4


def of_a_layer(rounds: int, samples: int, limit: float) -> Row:
    """Seconds a layer beyond one forward pass, for the outputs of the linear and of the ReLU layers of an MLP."""
    torch.manual_seed(0)
    module = Lit(MLP(256, _DEPTH))
    work = Work("mlp", module, {}, samples, 128)
    layers = [str(place) for place in range(2 * _DEPTH)]
    ready, plain = made(work, layers), forward_pass(work)
    plain()
    ready.event()
    timing = alternate(plain, ready.event, rounds, limit=limit)
    beyond = [(event - forward) / len(layers) for event, forward in zip(timing.tool, timing.plain, strict=True)]
    return {
        "seconds": statistics.median(beyond), "low": min(beyond), "high": max(beyond), "layers": len(layers),
        "of_a_pass": statistics.median(timing.plain),
    }  # fmt: skip
