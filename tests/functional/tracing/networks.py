"""Networks with known numbers of residual additions, and some without any."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

SAMPLES = 4
Run = Callable[[], Any]
Made = tuple[nn.Module, Run]


def conv_norm(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after))


class BasicBlock(nn.Module):
    """Adds in place, and rectifies in place."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = conv_norm(before, after, 3, stride), conv_norm(after, after)
        self.relu = nn.ReLU(inplace=True)
        self.down = conv_norm(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.relu(self.first(x)))
        out += self.down(x)
        return self.relu(out)


class PaddedBlock(BasicBlock):
    """Its skip connection has zeros for the new channels, and no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.relu(self.first(x)))
        more = out.shape[1] - x.shape[1]
        skip = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more // 2, more - more // 2)) if more else x
        return F.relu(out + skip)


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm(before, width, 1), nn.ReLU(), conv_norm(width, width, 3, stride), nn.ReLU(),
            conv_norm(width, after, 1),
        )  # fmt: skip
        self.down = conv_norm(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.down(x) + self.branch(x))


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            z = conv(F.relu(norm(z)))
        return x + z


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 3, 3, 1, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        z = z * torch.sigmoid(self.gate(z.mean((2, 3))))[..., None, None]
        return F.relu(z + x)


class Scaled(nn.Module):
    """A block with a scale for each unit, and one with a single scale that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.scales, self.scale = nn.Parameter(torch.full((12,), 0.1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scales * self.first(x).relu()
        return x + self.scale * self.second(x).relu()


class Parallel(nn.Module):
    """Attention and MLP side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        return self.attention(z, z, z)[0] + self.mlp(z) + x


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 + 8 * k, 8, 3, 1, 1) for k in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.cat([x, F.relu(conv(x))], 1)
        return x


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.small(x) + self.large(x)).mean((2, 3)))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.branch = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * self.branch(x) + (1 - gate) * x


class HandWrittenLSTM(nn.Module):
    """Sums of affine maps, and of gated states: all of Python's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.states = nn.Linear(12, 48), nn.Linear(12, 48)

    def forward(self, x: Tensor) -> Tensor:
        state = cell = x.new_zeros(len(x), 12)
        for step in x.unbind(1):
            gates = self.inputs(step) + self.states(state)
            i, f, g, o = gates.chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        return state


def with_stem(width: int, *blocks: nn.Module) -> nn.Sequential:
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)]
    return nn.Sequential(conv_norm(3, width), nn.ReLU(inplace=True), *blocks, *last)


def on(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Made]:
    """The network, and a pass on samples of some shapes."""

    def made() -> Made:
        torch.manual_seed(0)
        net, inputs = make(), [torch.randn(SAMPLES, *shape) for shape in shapes]
        net(*inputs)  # lazy layers
        net.eval()
        return net, lambda: net(*inputs)

    return made


def transformer(name: str, **settings: Any) -> Callable[[], Made]:
    """A small network of Transformers, on tokens or images."""

    def made() -> Made:
        torch.manual_seed(0)
        prefix = name.removesuffix("Encoder")
        net = getattr(transformers, f"{name}Model")(getattr(transformers, f"{prefix}Config")(**settings)).eval()
        ids = torch.randint(5, 90, (SAMPLES, 12))
        images = {"pixel_values": torch.randn(SAMPLES, 3, 32, 32)}
        tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return net, partial(net, **(tokens if "vocab_size" in settings else images))

    return made


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TOKENS = {"vocab_size": 100, **SMALL}
IMAGES = {"image_size": 32, "patch_size": 8}
IMAGE, VECTOR, SEQUENCE = (3, 16, 16), (12,), (5, 12)


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 4, 24, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 4, 24, batch_first=True), 2)


NETWORKS: dict[str, tuple[Callable[[], Made], int]] = {
    "basic": (on(lambda: with_stem(8, BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16)), IMAGE), 3),
    "padded": (on(lambda: with_stem(8, PaddedBlock(8, 8), PaddedBlock(8, 16, 2), PaddedBlock(16, 16)), IMAGE), 3),
    "bottleneck": (
        on(lambda: with_stem(8, Bottleneck(8, 4, 16), Bottleneck(16, 4, 16), Bottleneck(16, 8, 32, 2)), IMAGE), 3,
    ),
    "pre-activation": (on(lambda: with_stem(8, PreActivation(8), PreActivation(8)), IMAGE), 2),
    "squeeze-excite": (on(SqueezeExcite, IMAGE), 1),
    "layer scale and ReZero": (on(Scaled, VECTOR), 2),
    "parallel": (on(Parallel, SEQUENCE), 1),
    "encoder after norm": (on(partial(encoder, True), SEQUENCE), 6),
    "encoder before norm": (on(partial(encoder, False), SEQUENCE), 6),
    "decoder": (on(decoder, SEQUENCE, (7, 12)), 6),
    "bert": (transformer("Bert", **TOKENS), 4),
    "roberta": (transformer("Roberta", **TOKENS, max_position_embeddings=64), 4),
    "gpt2": (transformer("GPT2", vocab_size=100, n_embd=32, n_layer=2, n_head=4), 4),
    "llama": (transformer("Llama", **TOKENS, num_key_value_heads=2), 4),
    "gpt-neox": (transformer("GPTNeoX", **TOKENS), 2),
    "t5": (transformer("T5Encoder", vocab_size=100, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64), 4),
    "mamba": (
        transformer("Mamba", vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=8, use_mambapy=False), 2,
    ),
    "vit": (transformer("ViT", **SMALL, **IMAGES), 4),
    "dinov2": (transformer("Dinov2", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **IMAGES), 4),
    "swin": (
        transformer("Swin", image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4),
        8,
    ),
    "convnext": (transformer("ConvNext", hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, patch_size=2), 4),
    "resnet": (
        transformer("ResNet", embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic"), 4,
    ),
    "dense": (on(Dense, IMAGE), 0),
    "inception": (on(Inception, IMAGE), 0),
    "highway": (on(Highway, VECTOR), 0),
    "lstm": (on(lambda: nn.LSTM(12, 12, 2, batch_first=True), SEQUENCE), 0),
    "lstm by hand": (on(HandWrittenLSTM, SEQUENCE), 0),
}  # fmt: skip
