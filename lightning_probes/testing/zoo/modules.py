"""The LightningModules on which every probe is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes.testing.zoo.data import Graphs

Loss = Callable[[Tensor, Tensor], Tensor]


class Supervised(L.LightningModule):
    """A network with a loss on `(inputs, targets, ...)` batches."""

    def __init__(self, net: nn.Module, loss: Loss = F.cross_entropy, lr: float = 0.05) -> None:
        super().__init__()
        self.net: Any = net
        self.loss = loss
        self.lr = lr

    def forward(self, inputs: Any) -> Any:
        return self.net(inputs)

    def loss_of(self, batch: Any) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss_of(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss_of(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class OnMapping(Supervised):
    """Takes the parts of a mapping by name."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss_of(self, batch: Any) -> Tensor:
        target = batch["labels"] if "labels" in batch else batch["target"]
        return self.loss(self(batch["x"]), target)


class OnGraphs(Supervised):
    """Sums node features over each graph of a `Graphs` batch."""

    def forward(self, graphs: Graphs) -> Tensor:
        nodes = self.net[0](graphs.nodes)
        pooled = nodes.new_zeros(len(graphs.labels), nodes.shape[1]).index_add(0, graphs.graph_of_node, nodes)
        return self.net[1:](pooled)

    def loss_of(self, batch: Graphs) -> Tensor:
        return self.loss(self(batch), batch.labels)


class Weighted(Supervised):
    """Inputs in a dict, and targets with one weight per sample: batches `(dict, (target, weight))`."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.net(torch.cat([inputs["static"], inputs["dynamic"]], dim=1))

    def loss_of(self, batch: Any) -> Tensor:
        inputs, (target, weight) = batch
        return (weight * (self(inputs) - target).square()).mean()


class Recurrent(nn.Module):
    """A recurrent layer and a linear one on its last output."""

    def __init__(self, kind: Callable[..., nn.Module], dim: int = 3, hidden: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.rnn = kind(dim, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Residual(nn.Module):
    """`relu(x + f(x))` with BatchNorm inside; the same ReLU is called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding="same", bias=False)
        self.norm2 = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(x + self.norm2(self.conv2(out)))


class TwoInputs(nn.Module):
    """A network on a nested tuple `(a, (b, c))`."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 6), nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, inputs: tuple[Tensor, tuple[Tensor, Tensor]]) -> Tensor:
        a, (b, c) = inputs
        return self.head(torch.tanh(self.left(a) + self.right(torch.stack([b, c], dim=1))))


class UnscalesInEval(Supervised):
    """Predicts normalised targets in training and raw ones after `eval()`, but normalised ones in validation."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), F.mse_loss)
        self.register_buffer("scale", torch.tensor(100.0))
        self.unscale = False

    def train(self, mode: bool = True) -> UnscalesInEval:
        super().train(mode)
        self.unscale = not mode
        return self

    def on_validation_model_eval(self) -> None:
        self.eval()
        self.unscale = False

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.net(inputs)
        return out * self.scale if self.unscale else out


class DrawsWindows(Supervised):
    """Trains on random windows of a series, drawn in `training_step`."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), F.mse_loss, lr=0.01)

    def loss_of(self, batch: Tensor) -> Tensor:
        start = int(torch.randint(batch.shape[1] - 7, ()))
        window = batch[:, start : start + 7]
        return self.loss(self(window[:, :6]), window[:, 6:])


class OnLoaders(Supervised):
    """At each step, one batch from each of two loaders: `{"labelled": (x, y), "unlabelled": (x,)}`."""

    def loss_of(self, batch: Any) -> Tensor:
        if not isinstance(batch, dict):
            return super().loss_of(batch)
        x, y = batch["labelled"]
        (other,) = batch["unlabelled"]
        consistency = (self(other).softmax(1) - self(other + 0.1).softmax(1)).square().mean()
        return self.loss(self(x), y) + consistency


class HuggingFace(L.LightningModule):
    """A transformer with its own loss, on batches with `labels`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # beta1 = 0.5 averages about two gradients, so that even these short fits have a stability ratio.
        return torch.optim.AdamW(self.parameters(), lr=1e-3, betas=(0.5, 0.999))


class GAN(L.LightningModule):
    """Two optimizers with manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.discriminator(x)

    def discriminator_loss(self, real: Tensor) -> Tensor:
        fake = self.generator(torch.randn(len(real), 2, device=real.device))
        return F.softplus(-self(real)).mean() + F.softplus(self(fake)).mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator_optimizer, discriminator_optimizer = self.optimizers()
        loss = self.discriminator_loss(batch[0])
        discriminator_optimizer.zero_grad()
        self.manual_backward(loss)
        discriminator_optimizer.step()
        fake = self.generator(torch.randn(len(batch[0]), 2))
        generator_loss = F.softplus(-self(fake)).mean()
        generator_optimizer.zero_grad()
        self.manual_backward(generator_loss)
        generator_optimizer.step()
        self.log_dict({"d_loss": loss, "g_loss": generator_loss})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.999)) for part in parts]


def mlp(inputs: int = 4, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def cnn() -> nn.Sequential:
    """BatchNorm and in-place ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip


def resnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(1, 4, 3, padding=1), Residual(4), Residual(4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    )
