"""Architectures of the comparison, in sizes that two CPU cores run in seconds. Inputs to logits, plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
VOCABULARY = 256


class MLP(nn.Sequential):
    """(n, 40) to logits."""

    def __init__(self, width: int = 256, depth: int = 3, inputs: int = 40) -> None:
        sizes = [inputs, *[width] * depth]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(*layers, nn.Linear(width, CLASSES))


class Conv1dNet(nn.Sequential):
    """(n, 1, 40), as MNIST-1D has it, to logits."""

    def __init__(self, channels: int = 25) -> None:
        super().__init__(
            nn.Conv1d(1, channels, 5, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * 10, CLASSES),
        )


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if project and (stride > 1 or inputs != outputs):
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.pad = 0 if project else outputs - inputs
        self.stride = 1 if project else stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        kept = self.shortcut(x)
        if self.pad or self.stride > 1:  # as in the CIFAR networks of the paper: no parameters in the shortcut
            kept = F.pad(kept[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.pad))
        return self.relu2(out + kept)


class ResNet(nn.Module):
    """(n, 3, 32, 32) to logits, for CIFAR-sized images."""

    def __init__(self, widths: tuple[int, ...], depth: int, project: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for number in range(depth):
                blocks.append(Block(inputs, width, 2 if stage and not number else 1, project))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.flatten(self.pool(self.blocks(x))))  # type: ignore[no-any-return]


class LSTM(nn.Module):
    """(n, 32, 16) to logits, from the last of its hidden states."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, width, batch_first=True)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


class Logits(nn.Module):
    """A model of `transformers` that takes a tensor and returns one, as other tools ask."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model = model
        self.argument = argument

    def forward(self, x: Tensor) -> Tensor:
        return self.model(**{self.argument: x}).logits  # type: ignore[no-any-return]


def vit(width: int = 64, depth: int = 4) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=4, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4,
        intermediate_size=2 * width, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Logits(ViTForImageClassification(config), "pixel_values")


def gpt2(width: int = 64, depth: int = 4) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=width, n_layer=depth, n_head=4, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Logits(GPT2LMHeadModel(config), "input_ids")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": MLP,
    "conv1d": Conv1dNet,
    "resnet20": lambda: ResNet((16, 32, 64), 3, project=False),
    "resnet18": lambda: ResNet((64, 128, 256, 512), 2, project=True),
    "vit": vit,
    "gpt2": gpt2,
    "lstm": LSTM,
}


def samples_for(name: str, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets that can be learned: a pattern of the class under noise; tokens that follow one another."""
    if name == "gpt2":
        steps = torch.randint(1, 4, (number, 33), generator=generator)
        tokens = (torch.randint(VOCABULARY, (number, 1), generator=generator) + steps.cumsum(1)) % VOCABULARY
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    shapes: dict[str, tuple[int, ...]] = {"mlp": (40,), "conv1d": (1, 40), "lstm": (32, 16)}
    shape = shapes.get(name, (3, 32, 32))
    patterns = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(CLASSES, (number,), generator=generator)
    return 0.5 * patterns[targets] + torch.randn(number, *shape, generator=generator), targets


def cross_entropy(logits: Tensor, targets: Any) -> Tensor:
    """Mean over samples, and over tokens where there are several a sample."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
