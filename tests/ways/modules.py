"""Modules that keep, share, exchange or draw something while they train."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_probes.testing.zoo.modules import Supervised, mlp


def dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def batch_norm(momentum: float | None = 0.1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 3))


class CountsReads(Dataset[Any]):
    """Counts how often it was read, and draws from generators of its own."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data
        self.reads = 0
        self.generators = (random.Random(1), np.random.default_rng(1), torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        python, numpy, torch_ = self.generators
        x, y = self.data[index]
        noise = python.random() + float(numpy.random()) + float(torch.rand((), generator=torch_))
        return x + 0.1 * noise + 0.001 * self.reads, y


class Metrics(Supervised):
    """Metrics of torchmetrics, logged as objects and as values, per step and per epoch."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.mean_loss = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.accuracy(self(batch[0]), batch[1])
        self.mean_loss.update(loss)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("mean_loss", self.mean_loss.compute(), on_step=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("epoch_mean", self.mean_loss.compute())
        self.mean_loss.reset()


class Collects(Supervised):
    """Collects outputs for the end of the epoch."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("outputs", torch.stack(self.outputs).sum())
        self.outputs.clear()


class Averages(Supervised):
    """Moving averages in buffers: of activations, in a forward hook, and of weights, after each step."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*mlp()[:2], nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)))
        self.register_buffer("activations", torch.zeros(8))
        self.register_buffer("weights", torch.zeros(8, 4))
        self.net[0].register_forward_hook(self.average_activations)

    def average_activations(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.activations.lerp_(output.detach().mean(0), 0.1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.lerp_(self.net[0].weight.detach(), 0.1)

    def loss_of(self, batch: Any) -> Tensor:
        return super().loss_of(batch) + 0.1 * (self.net[0].weight - self.weights).square().mean()


class WithBackbone(Supervised):
    """A backbone and a head, for `BackboneFinetuning`."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.net = nn.Identity()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr, momentum=0.9)


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project, self.head = nn.Linear(4, 4), nn.Linear(4, 4), mlp()
        self.project.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.project(torch.tanh(self.embed(x)))))


class Unused(Supervised):
    """Parameters that the loss does not depend on, under an optimizer that decays weights."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.unused = nn.Linear(3, 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


class Symmetric(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


def parametrized() -> nn.Sequential:
    symmetric = nn.Linear(8, 8)
    nn.utils.parametrize.register_parametrization(symmetric, "weight", Symmetric())
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
    return nn.Sequential(spectral, nn.Tanh(), symmetric, nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def weight_norm() -> nn.Sequential:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 3))


class Schedules(Supervised):
    """A learning rate schedule per step, and a weight decay that `training_step` itself lets grow."""

    def __init__(self) -> None:
        super().__init__(mlp())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for group in self.optimizers().param_groups:
            group["weight_decay"] += 1e-3
        self.log("lr", self.lr_schedulers().get_last_lr()[0])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Logs(Supervised):
    """Logs the loss of each step and the mean of each epoch."""

    def __init__(self) -> None:
        super().__init__(mlp())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss


class Plateau(Logs):
    """Lowers the learning rate where the training loss of an epoch does not get much lower."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss_epoch"}}


class Compiler:
    """A backend of `torch.compile` that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        torch._dynamo.reset()  # which remembers code, whichever module it ran for
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


class PartlyCompiled(Supervised):
    """A compiled submodule; keeps its compiler."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.compiler = Compiler()
        self.net = nn.Sequential(torch.compile(mlp(4, 8), backend=self.compiler), dropout_block(), nn.Linear(8, 3))


class Quiet(Supervised):
    """To be compiled as a whole; logs nothing, for Lightning 2.6 can't log from such a module under torch 2.13."""

    def __init__(self) -> None:
        super().__init__(batch_norm())
        self.compiler = Compiler()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss_of(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loss_of(batch)


class Checkpointed(nn.Module):
    """Recomputes its middle in the backward pass."""

    def __init__(self, use_reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(4, 8), dropout_block(), nn.Linear(8, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.middle, self.first(x), use_reentrant=self.use_reentrant)
        return self.head(hidden)


def dropout_block() -> nn.Sequential:
    return nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.2), nn.Tanh())


class Configured(Supervised):
    """Makes its network, and counts its steps, in hooks."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.net = None  # type: ignore[assignment]
        self.steps = 0

    def configure_model(self) -> None:
        if self.net is None:
            self.net = batch_norm()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return super().training_step(batch, batch_idx)


def of_the_other_namespace() -> Any:
    """A LightningModule of `pytorch_lightning`, with a metric, a counter and BatchNorm."""
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.mean_loss, self.steps = batch_norm(), MeanMetric(), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.steps += 1
            self.mean_loss(loss)
            self.log("train_loss", loss)
            self.log("mean_loss", self.mean_loss, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    return Other()
