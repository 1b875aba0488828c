"""A training that goes on after a break exactly as if there had been none: every batch has the same samples.

Lightning restores neither the generators nor the place in a shuffled loader; what differs after a break is then the
training, and not the measurement.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from tests.zoo import Fit
from tests.zoo.data import BATCH, SAMPLES, labelled, loader
from tests.zoo.modules import Supervised, cnn


class Repeated(Dataset[Any]):
    """The samples of the first batch, again and again."""

    def __init__(self) -> None:
        self.data = labelled(1, 8, 8)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return self.data[index % BATCH]


class Adaptive(Supervised):
    """With an optimizer that has a memory."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def resumable() -> Fit:
    """A convolutional network with BatchNorm, five steps an epoch."""
    return Fit(Adaptive(cnn()), loader(Repeated(), shuffle=False), loader(labelled(1, 8, 8, seed=1), shuffle=False))
