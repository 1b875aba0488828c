"""Networks whose groups of units are known, and networks that are easy to get wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.GELU(),
        nn.Linear(32, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def weight_norms() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(1, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 6, 3), dim=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), norm(nn.Linear(6, 12)), nn.GELU(), nn.Linear(12, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block of two convolutions, with a convolution in the shortcut where the shape changes."""

    def __init__(self, dimensions: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv1d, nn.BatchNorm1d)
        self.conv1, self.norm1 = conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
        changed = inputs != outputs or stride != 1
        self.shortcut = (
            nn.Sequential(conv(inputs, outputs, 1, stride, bias=False), norm(outputs)) if changed else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (inner + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self, dimensions: int = 2, blocks: int = 2) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv1d, nn.BatchNorm1d)
        self.stem = nn.Sequential(conv(1, 8, 3, 1, 1, bias=False), norm(8), nn.ReLU())
        first = [Block(dimensions, 8, 8, 1) for _ in range(blocks)]
        second = [Block(dimensions, 8 if k == 0 else 16, 16, 2 if k == 0 else 1) for k in range(blocks)]
        self.blocks = nn.Sequential(*first, *second)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).flatten(2).mean(2))


class PaddedShortcut(nn.Module):
    """The shortcut without parameters: every other pixel, and zeros for the channels that are missing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.conv0(x)).relu()
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.adaptive_avg_pool2d((inner + shortcut).relu(), 1).flatten(1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = (nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 6, 3, 1, 1), nn.Conv2d(14, 6, 3))
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv0(x).relu()
        b = self.conv1(a).relu()
        c = self.conv2(torch.cat([a, b], 1)).relu()
        return self.head(torch.cat([a.mean((2, 3)), b.mean((2, 3)), c.mean((2, 3))], 1))


def mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Conv2d(8, 16, 1), nn.GroupNorm(4, 16), nn.PReLU(16), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 20), nn.GELU(), nn.Linear(20, 10),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(1, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.conv(x))
        gate = self.excite(self.squeeze(h.mean((2, 3))).relu()).sigmoid()
        return self.head((h * gate[:, :, None, None]).amax((2, 3)))


class ViT(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 2, 2)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.pos
        return self.head(self.norm(self.encoder(tokens))[:, 0])


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


class GRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 12, num_layers=2, batch_first=True), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x[:, 0])[0][:, -1])


class GLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 24), nn.LayerNorm(12)
        self.inner, self.head = nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.glu(self.first(x.flatten(1)))
        return self.head(h + self.inner(self.norm(h)).tanh())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.first(x.flatten(1)).relu()).relu()).relu())


class ConstantTable(nn.Module):
    """A table of constants meets the second layer's units, which stay in place; those of the first do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 12), nn.RMSNorm(12)
        self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 10)
        self.register_buffer("table", torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x.flatten(1)))
        return self.head(F.normalize(self.second(h).relu(), dim=-1) + self.table)


class GraphNetwork(nn.Module):
    """Eight nodes a graph send messages along edges; a node adds up those that it gets, and a graph its nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.update = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(18, 10)
        self.head = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.embed(x.reshape(-1, 8)).relu()
        senders, receivers = torch.randint(len(nodes), (2, 30), generator=torch.Generator().manual_seed(0))
        received = self.summed(self.message(nodes)[senders].tanh(), receivers, len(nodes))
        nodes = self.update(torch.cat([nodes, received], 1)).relu()
        return self.head(self.summed(nodes, torch.arange(len(nodes)) // 8, len(x)))

    def summed(self, rows: Tensor, at: Tensor, count: int) -> Tensor:
        return rows.new_zeros(count, rows.shape[1]).index_add(0, at, rows)


class ScatteringGraphNetwork(GraphNetwork):
    """With an index of the shape of the rows."""

    def summed(self, rows: Tensor, at: Tensor, count: int) -> Tensor:
        return rows.new_zeros(count, rows.shape[1]).scatter_add_(0, at[:, None].expand_as(rows), rows)


KNOWN: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "MLP": (mlp, 3, 96),
    "CNN, BatchNorm, flatten": (cnn, 3, 88),
    "ResNet": (ResNet, 6, 72),
    "ResNet of one dimension": (lambda: ResNet(dimensions=1, blocks=1), 4, 48),
    "ResNet, padded shortcut": (PaddedShortcut, 3, 32),
    "DenseNet": (DenseNet, 3, 20),
    # One group more than one that permutes outputs inside each of the 4 groups of channels: inputs of a grouped
    # convolution can be permuted alike in all groups.
    "depthwise and grouped convolutions": (mobile, 7, 48),
    "squeeze and excite": (SqueezeExcite, 2, 12),
    "ViT, norm first": (lambda: ViT(norm_first=True), 19, 144),
    "ViT, norm last": (lambda: ViT(norm_first=False), 19, 144),
    "LSTM": (LSTM, 1, 12),
    "GRU": (GRU, 2, 24),
    "GLU": (GLU, 1, 12),
    "tied layer": (Tied, 1, 12),
    "RMS norm and a constant": (ConstantTable, 1, 12),
    "weight norm": (weight_norms, 3, 26),
    "graph network": (GraphNetwork, 3, 28),
    "graph network that scatters": (ScatteringGraphNetwork, 3, 28),
}
"""A network, and the number of groups and of units in it."""


def samples(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, 1, 40) if "one dimension" in name else (2, 1, 8, 8), generator=generator)


def randomised(module: nn.Module) -> nn.Module:
    """The module with parameters and statistics that differ from unit to unit, as after training."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.running_mean.normal_(generator=generator)
                child.running_var.uniform_(0.5, 2, generator=generator)
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 and "bias" not in name:
                parameter.uniform_(0.5, 2, generator=generator)
            elif parameter.ndim == 1:
                parameter.normal_(generator=generator)
    return module.eval()
