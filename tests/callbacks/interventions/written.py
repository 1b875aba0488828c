"""The Fisher penalty as a user would write it into `training_step`, with the labels that the callback draws."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes.functional.likelihood import Categorical
from lightning_probes.probing.isolation.seeding import derived_seed
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised

C = 0.05


def network(bn: bool = False, dropout: float = 0.0) -> nn.Module:
    """Smooth, so that rounding does not grow at kinks."""
    normalised = nn.BatchNorm1d(12) if bn else nn.Identity()
    return nn.Sequential(nn.Linear(4, 12), normalised, nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 3))


def labels_of(logits: Tensor, module: L.LightningModule, seed: int = 0) -> Tensor:
    """The labels that the callback draws at this step in this process."""
    trainer = module.trainer
    key = derived_seed(derived_seed(seed, trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.global_rank), 1)
    return Categorical().sample(logits.detach(), torch.Generator(logits.device).manual_seed(key))


class Written(Supervised):
    """The loss and the penalty, which the last micro-batch of a step has alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        if self.trainer.fit_loop.epoch_loop._should_accumulate():
            return loss
        drawn = F.cross_entropy(logits, labels_of(logits, self))
        slopes = torch.autograd.grad(drawn, [*self.parameters()], create_graph=True)
        trace = len(logits) * torch.stack([slope.square().sum() for slope in slopes]).sum()
        return loss + self.trainer.accumulate_grad_batches * C * trace


def made(kind: type[Supervised] = Supervised, bn: bool = False, dropout: float = 0.0) -> Fit:
    """One of both modules, and its data."""
    return Fit(kind(network(bn, dropout)), loader(labelled(4)))
