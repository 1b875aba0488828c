"""A training that goes on after a break exactly as if there had been none: every batch has the same samples.

Lightning restores neither the generators nor the place in a shuffled loader; what differs after a break is then the
training, and not the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from torch import nn

from lightning_probes import Probe
from lightning_probes.testing import resumed, subject
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, cnn


class Repeated(subject.Repeated):
    def __init__(self) -> None:
        super().__init__(labelled(1, 8, 8))


class Adaptive(Supervised):
    """With an optimizer that has a memory."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def resumable(net: Callable[[], nn.Module] = cnn) -> Fit:
    """By default a convolutional network with BatchNorm; five steps an epoch."""
    return Fit(Adaptive(net()), loader(Repeated(), shuffle=False), loader(labelled(1, 8, 8, seed=1), shuffle=False))


def begin(directory: Path, probes: Sequence[Callback], make: Callable[[], Fit] = resumable) -> Path:
    return resumed.begin(directory, probes, make)


def go_on(
    directory: Path, checkpoint: Path | None, probes: Sequence[Callback], make: Callable[[], Fit] = resumable
) -> Any:
    return resumed.go_on(directory, checkpoint, probes, make)


def measured(each: Probe) -> list[dict[str, float]]:
    return [{key: v for key, v in row.items() if not key.endswith(("/seconds", "/overhead"))} for row in each.history]
