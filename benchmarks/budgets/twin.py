"""What it costs to build the double that a probe measures on, as every event does."""

from __future__ import annotations

import statistics

from benchmarks.cells import Row
from benchmarks.models import ResNet
from benchmarks.timing import seconds
from benchmarks.work import Lit
from lightning_probes.probing.isolation.twin import Twin


def building(rounds: int) -> Row:
    """Milliseconds for a ResNet of 60 million parameters. Parameters are shared, so that modules are what it costs."""
    module = Lit(ResNet((64, 128, 256, 512), 10, project=True))
    Twin(module)
    return {
        "milliseconds": 1e3 * statistics.median(seconds(lambda: Twin(module), 0.1) for _ in range(rounds)),
        "millions": sum(param.numel() for param in module.parameters()) / 1e6,
        "modules": sum(1 for _ in module.modules()),
    }
