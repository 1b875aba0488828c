"""Small modules whose measurements are known in closed form or can be had from an explicit matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Supervised(pl.LightningModule):
    """Any network and any loss on (inputs, targets)."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
        optimizer: Callable[[Any], Any] = lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer = net, loss, optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def classification(samples: int = 64, inputs: int = 4, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator)
    return x, torch.randint(0, classes, (samples,), generator=generator)


def loader(*tensors: Tensor, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def trainer(**kwargs: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(**{"enable_checkpointing": False, **quiet, **kwargs})


def explicit_hessian(module: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Hessian over the trainable parameters, by one backward pass a row."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = [
        torch.cat([r.flatten() for r in torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)])
        for g in flat
    ]
    return torch.stack(rows)
