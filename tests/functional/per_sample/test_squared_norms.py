from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_probes.functional.layer_capture import captured_calls
from lightning_probes.functional.per_sample.norm_plan import PlannedNorms, owners_of
from lightning_probes.functional.per_sample.norm_rules import rule_of
from lightning_probes.functional.per_sample.sample_gradients import Convolution
from lightning_probes.functional.per_sample.squared_norms import (
    Method,
    Plan,
    choose_methods,
    per_sample_squared_grad_norms,
)

SAMPLES = 5


def one_by_one(module: nn.Module, logits: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """The definition: one `autograd.grad` a sample."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows = []
    for sample in range(len(logits)):
        inner = (logits[sample] * cotangent[sample]).sum()
        grads = torch.autograd.grad(inner, [*parameters.values()], retain_graph=True, materialize_grads=True)
        rows.append(torch.stack([grad.abs().double().square().sum() for grad in grads]))
    return dict(zip(parameters, torch.stack(rows).unbind(1), strict=True))


def random_like(logits: Tensor) -> Tensor:
    return torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)


def assert_right(
    module: nn.Module,
    forward: Callable[[], Tensor],
    methods: Plan | Method | None = None,
    rtol: float | None = None,
) -> None:
    """Norms of all parameters equal the definition's."""
    logits = forward()
    cotangent = random_like(logits)
    expected = one_by_one(module, logits, cotangent)
    found = per_sample_squared_grad_norms(module, forward, lambda _: [cotangent], methods)
    assert found.keys() == expected.keys()
    total = torch.stack([*expected.values()]).sum(0)
    if rtol is None:
        rtol = 1e-10 if logits.dtype == torch.float64 else 1e-5
    for name, norms in expected.items():
        assert found[name].shape == (1, len(logits))
        assert found[name].dtype == torch.float64
        error = (found[name][0] - norms).abs()
        assert (error <= rtol * norms + 1e-3 * rtol * total).all(), (name, found[name][0], norms)


class Net(nn.Module):
    """Layers and a function of them."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


Case = tuple[nn.Module, tuple[Any, ...]]


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def tokens(*shape: int, below: int = 7) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(3))


def padding(samples: int, length: int) -> Tensor:
    """True from another position on for each sample."""
    return torch.arange(length) >= torch.arange(length - samples, length).unsqueeze(1).clamp(min=1)


def after(layer: nn.Module, width: int, flat: int) -> nn.Module:
    """A layer between others, so that the gradient that arrives is not a plain cotangent."""
    return nn.Sequential(nn.Linear(width, width), layer, nn.Tanh(), nn.Flatten(), nn.Linear(flat, 3))


def conv(layer: nn.Module, *shape: int) -> Case:
    x = floats(SAMPLES, *shape)
    flat = layer.double()(x)[0].numel()
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(flat, 3)), (x,)


def norm(layer: nn.Module, *shape: int) -> Case:
    x = floats(SAMPLES, *shape)
    nn.init.normal_(layer.weight, 1.0)
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(x[0].numel(), 3)), (3 * x + 1,)


def batch_norm(layer: Any, *shape: int) -> Case:
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return norm(layer, *shape)


def embedding(layer: nn.Embedding) -> Case:
    return nn.Sequential(layer, nn.Flatten(), nn.Tanh(), nn.Linear(6 * 4, 3)), (tokens(SAMPLES, 6),)


RULES: dict[str, Callable[[], Case]] = {
    "linear": lambda: (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (floats(SAMPLES, 4),)),
    "linear without bias": lambda: (nn.Linear(4, 6, bias=False), (floats(SAMPLES, 4),)),
    "linear on short sequences": lambda: (after(nn.Linear(4, 9), 4, 18), (floats(SAMPLES, 2, 4),)),
    "linear on long sequences": lambda: (after(nn.Linear(4, 2), 4, 40), (floats(SAMPLES, 20, 4),)),
    "linear on grids": lambda: (after(nn.Linear(4, 5), 4, 30), (floats(SAMPLES, 2, 3, 4),)),
    "conv1d": lambda: conv(nn.Conv1d(3, 4, 3), 3, 9),
    "conv1d, many channels": lambda: conv(nn.Conv1d(24, 32, 3, padding=1), 24, 3),
    "conv1d, reflected": lambda: conv(nn.Conv1d(2, 4, 4, padding=(2,), padding_mode="reflect"), 2, 9),
    "conv2d": lambda: conv(nn.Conv2d(2, 4, 3, padding=1, bias=False), 2, 6, 5),
    "conv2d, many channels": lambda: conv(nn.Conv2d(24, 32, 3, padding=(1, 0)), 24, 2, 4),
    "conv2d, stride and dilation": lambda: conv(nn.Conv2d(2, 4, (3, 2), (2, 3), (2, 1), (2, 1)), 2, 9, 8),
    "conv2d, many channels, stride and dilation": lambda: conv(nn.Conv2d(24, 32, 2, 2, 1, (2, 1)), 24, 5, 4),
    "conv2d, groups": lambda: conv(nn.Conv2d(4, 6, 3, groups=2), 4, 6, 5),
    "conv2d, many channels in groups": lambda: conv(nn.Conv2d(48, 64, 3, padding=1, groups=2), 48, 2, 2),
    "conv2d, depthwise": lambda: conv(nn.Conv2d(4, 8, 3, groups=4), 4, 6, 5),
    "conv2d, same": lambda: conv(nn.Conv2d(2, 4, (4, 3), padding="same", dilation=(1, 2)), 2, 6, 5),
    "conv2d, valid": lambda: conv(nn.Conv2d(2, 4, 3, padding="valid"), 2, 6, 5),
    "conv2d, circular": lambda: conv(nn.Conv2d(2, 4, 3, padding=(1, 2), padding_mode="circular"), 2, 6, 5),
    "conv2d, same, replicated": lambda: conv(nn.Conv2d(2, 4, 4, padding="same", padding_mode="replicate"), 2, 6, 5),
    "conv2d, 1 x 1": lambda: conv(nn.Conv2d(4, 5, 1), 4, 3, 3),
    "conv3d": lambda: conv(nn.Conv3d(2, 3, 2, padding=(1, 0, 1), stride=(1, 1, 2)), 2, 3, 4, 5),
    "embedding with repeats": lambda: embedding(nn.Embedding(7, 4)),
    "embedding with many rows": lambda: embedding(nn.Embedding(200, 4, padding_idx=2)),
    "embedding with few rows": lambda: (
        nn.Sequential(nn.Embedding(2, 4), nn.Flatten(), nn.Tanh(), nn.Linear(80, 3)),
        (tokens(SAMPLES, 20, below=2),),
    ),
    "embedding with padding": lambda: embedding(nn.Embedding(7, 4, padding_idx=2)),
    "embedding of one token": lambda: (nn.Embedding(7, 4), (tokens(SAMPLES),)),
    "layer norm": lambda: norm(nn.LayerNorm(6), 3, 6),
    "layer norm over two dims": lambda: norm(nn.LayerNorm((3, 6)), 2, 3, 6),
    "layer norm without bias": lambda: norm(nn.LayerNorm(6, bias=False), 6),
    "group norm": lambda: norm(nn.GroupNorm(2, 4), 4, 3, 2),
    "rms norm": lambda: norm(nn.RMSNorm(6, eps=1e-3), 3, 6),
    "batch norm of vectors": lambda: batch_norm(nn.BatchNorm1d(4), 4),
    "batch norm 1d": lambda: batch_norm(nn.BatchNorm1d(4), 4, 6),
    "batch norm 2d": lambda: batch_norm(nn.BatchNorm2d(4), 4, 3, 2),
    "batch norm 3d": lambda: batch_norm(nn.BatchNorm3d(4), 4, 3, 2, 2),
}


@pytest.mark.parametrize("method", ["rule", "vmap", "loop", "one_by_one"])
@pytest.mark.parametrize("name", RULES)
def test_each_way_gives_the_norms_of_each_samples_gradient(name: str, method: Method) -> None:
    module, inputs = RULES[name]()
    module = module.double().eval()
    plan = choose_methods(module, lambda: module(*inputs), (method,))
    assert {way.method for way in plan.values()} == {method}
    assert_right(module, lambda: module(*inputs), plan)


def attention(batch_first: bool, **masks: Tensor) -> Case:
    layer = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    shape = (SAMPLES, 6, 4) if batch_first else (6, SAMPLES, 4)
    pool = 1 if batch_first else 0
    net = Net(
        lambda net, x: net.head(net.attention(x, x, x, **masks)[0].mean(pool)), attention=layer, head=nn.Linear(4, 3)
    )
    return net, (floats(*shape),)


def cross_attention() -> Case:
    net = Net(
        lambda net, x, memory, mask: net.head(
            net.attention(net.first(x), memory, memory, key_padding_mask=mask)[0].mean(1)
        ),
        first=nn.Linear(4, 4),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        head=nn.Linear(4, 3),
    )
    return net, (floats(SAMPLES, 3, 4), floats(SAMPLES, 6, 4), padding(SAMPLES, 6))


def encoder(batch_first: bool, length: int) -> Case:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=batch_first)
    net = Net(lambda net, x: net.head(net.layer(x).mean(1 if batch_first else 0)), layer=layer, head=nn.Linear(4, 3))
    return net, (floats(SAMPLES, length, 4) if batch_first else floats(length, SAMPLES, 4),)


def masked_encoder() -> Case:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
    net = Net(
        lambda net, x, mask: net.head(net.layers(x, src_key_padding_mask=mask)[:, 0]),
        layers=layers,
        head=nn.Linear(4, 3),
    )
    return net, (floats(SAMPLES, 6, 4), padding(SAMPLES, 6))


def recurrent(layer: nn.RNNBase, states: bool = False) -> Case:
    shape = (SAMPLES, 6, 4) if layer.batch_first else (6, SAMPLES, 4)

    def function(net: Any, x: Tensor) -> Tensor:
        outputs, last = net.layer(net.first(x))
        last = last[0] if isinstance(last, tuple) else last
        return net.head(last[-1] if states else outputs[:, -1] if layer.batch_first else outputs[-1])

    return Net(function, first=nn.Linear(4, 4), layer=layer, head=nn.Linear(3, 2)), (floats(*shape),)


def both_ways(layer: nn.RNNBase) -> Case:
    """Everything that the layer returns is used, the cell states too."""
    shape = (SAMPLES, 6, 4) if layer.batch_first else (6, SAMPLES, 4)

    def function(net: Any, x: Tensor) -> Tensor:
        outputs, last = net.layer(net.first(x))
        last = last if isinstance(last, tuple) else (last,)
        mean = outputs.mean(1 if layer.batch_first else 0)
        return net.head(mean + sum(state.transpose(0, 1).flatten(1)[:, : mean.shape[1]].tanh() for state in last))

    return Net(function, first=nn.Linear(4, 4), layer=layer, head=nn.Linear(6, 2)), (floats(*shape),)


def decoder() -> Case:
    """One recurrent layer starts from the states of another."""

    def function(net: Any, x: Tensor, y: Tensor) -> Tensor:
        return net.head(net.decode(y, hx=net.encode(x)[1])[0])

    layers = {"encode": nn.LSTM(4, 3, 2, batch_first=True), "decode": nn.LSTM(2, 3, 2, batch_first=True)}
    return Net(function, **layers, head=nn.Linear(3, 2)), (floats(SAMPLES, 6, 4), floats(SAMPLES, 3, 2))


def tied(functional: bool, rows: int = 7) -> Case:
    net = Net(
        lambda net, x: (
            F.linear(net.mix(net.tokens(x)), net.tokens.weight) if functional else net.head(net.mix(net.tokens(x)))
        ),
        tokens=nn.Embedding(rows, 4, padding_idx=2),
        mix=nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
    )
    if not functional:
        net.head = nn.Linear(4, rows, bias=False)
        net.head.weight = net.tokens.weight
    return net, (tokens(SAMPLES, 6),)


class Scaled(nn.Linear):
    """Uses its weight otherwise than its base class."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) + self.weight.sum()


def in_place() -> Case:
    def function(net: Any, x: Tensor) -> Tensor:
        x = net.act(net.norm(net.first(x)))
        x = net.act(net.second(x).add_(x))
        return net.head(x.mean((2, 3)))

    return Net(
        function,
        first=nn.Conv2d(2, 4, 3),
        norm=nn.BatchNorm2d(4),
        second=nn.Conv2d(4, 4, 3, padding=1),
        act=nn.ReLU(inplace=True),
        head=nn.Linear(4, 3),
    ), (floats(SAMPLES, 2, 5, 5),)


def vision_transformer(repeat: bool = False) -> Case:
    def function(net: Any, x: Tensor) -> Tensor:
        x = net.patches(x).flatten(2).transpose(1, 2)
        first = net.first.repeat(len(x), 1, 1) if repeat else net.first.expand(len(x), -1, -1)
        return net.head(torch.tanh(torch.cat([first, x], 1) + net.positions)[:, :2].mean(1))

    return Net(
        function,
        patches=nn.Conv2d(1, 4, 2, 2),
        first=nn.Parameter(torch.randn(1, 1, 4)),
        positions=nn.Parameter(torch.randn(5, 4) if repeat else torch.randn(1, 5, 4)),
        head=nn.Linear(4, 3),
    ), (floats(SAMPLES, 1, 4, 4),)


def positions(extra_dim: bool) -> Case:
    def function(net: Any, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        return net.head(torch.tanh(net.tokens(x) + net.positions(at.unsqueeze(0) if extra_dim else at)).sum(1))

    return Net(function, tokens=nn.Embedding(7, 4), positions=nn.Embedding(SAMPLES, 4), head=nn.Linear(4, 3)), (
        tokens(SAMPLES, SAMPLES),
    )


class OwnAttention(nn.Module):
    """Keeps its projections as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ParameterList(nn.Parameter(torch.randn(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (x.unsqueeze(1) @ weight for weight in self.projections)
        return F.scaled_dot_product_attention(query, key, value).squeeze(1)


class Table(nn.Module):
    """Gives its parameter away."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 6, 4))

    def forward(self) -> Tensor:
        return self.table


def position_table() -> Case:
    return Net(
        lambda net, x: net.head(torch.tanh(net.tokens(x) + net.positions()).sum(1)),
        tokens=nn.Embedding(7, 4),
        positions=Table(),
        head=nn.Linear(4, 3),
    ), (tokens(SAMPLES, 6),)


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def scaled_vision_transformer() -> Case:
    def function(net: Any, x: Tensor) -> Tensor:
        x = net.other(net.scale(net.patches(x).flatten(2).transpose(1, 2))) + net.positions
        return net.head(torch.tanh(x).mean(1))

    return Net(
        function,
        patches=nn.Conv2d(1, 4, 2, 2),
        scale=Scale(4),
        other=Scaled(4, 4, bias=False),
        positions=nn.Parameter(torch.randn(1, 4, 4)),
        head=nn.Linear(4, 3),
    ), (floats(SAMPLES, 1, 4, 4),)


def windows() -> Case:
    def function(net: Any, x: Tensor) -> Tensor:
        inner = net.act(net.norm(net.inner(x.flatten(0, 1)))).unflatten(0, (len(x), -1))
        return net.head(inner.mean((1, 3, 4)))

    return Net(
        function,
        inner=nn.Conv2d(2, 4, 2),
        norm=nn.GroupNorm(2, 4),
        act=nn.PReLU(),
        head=nn.Linear(4, 3),
    ), (floats(SAMPLES, 3, 2, 3, 3),)


def experts() -> Case:
    def function(net: Any, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        chosen = rows[:, 0] > 0
        out = torch.empty_like(rows)
        out[chosen], out[~chosen] = net.one(rows[chosen]), net.other(rows[~chosen])
        return net.head(out.view_as(x).mean(1))

    return Net(function, one=nn.Linear(4, 4), other=nn.Linear(4, 4), head=nn.Linear(4, 3)), (floats(SAMPLES, 3, 4),)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def nested(inner: nn.Module) -> Case:
    return nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 3)), (floats(SAMPLES, 4),)


STRUCTURES: dict[str, tuple[Callable[[], Case], dict[str, Method]]] = {
    "self-attention": (lambda: attention(True), {"attention": "rule", "attention.out_proj": "rule"}),
    "self-attention, samples second": (lambda: attention(False), {"attention": "rule"}),
    "self-attention, masks": (
        lambda: attention(True, attn_mask=floats(6, 6), key_padding_mask=padding(SAMPLES, 6).double() * -2),
        {"attention": "rule"},
    ),
    "self-attention, a mask for each sample and head": (
        lambda: attention(False, attn_mask=floats(2 * SAMPLES, 6, 6) > 1.5), {"attention": "rule"}
    ),
    "attention to other inputs": (cross_attention, {"attention": "rule"}),
    "encoder layer": (lambda: encoder(True, 6), {"layer.self_attn": "rule", "layer.linear1": "rule"}),
    "encoder layer, samples second": (lambda: encoder(False, 6), {"layer.self_attn": "rule", "layer.linear1": "rule"}),
    "encoder layer, as long as samples": (lambda: encoder(True, SAMPLES), {"layer.linear1": "rule"}),
    "encoder layer, samples second, as many as tokens": (lambda: encoder(False, SAMPLES), {"layer.linear1": "rule"}),
    "encoder layers, masked": (masked_encoder, {"layers.layers.0.self_attn": "rule"}),
    "lstm": (lambda: recurrent(nn.LSTM(4, 3, 2, batch_first=True)), {"layer": "rule"}),
    "lstm, its last state": (lambda: recurrent(nn.LSTM(4, 3, 2, batch_first=True), states=True), {"layer": "rule"}),
    "lstm, samples second": (lambda: recurrent(nn.LSTM(4, 3, bias=False)), {"layer": "rule"}),
    "lstm, both ways": (lambda: both_ways(nn.LSTM(4, 3, 2, bidirectional=True)), {"layer": "rule"}),
    "lstm with projections": (lambda: both_ways(nn.LSTM(4, 5, proj_size=3, bidirectional=True)), {"layer": "loop"}),
    "gru": (lambda: recurrent(nn.GRU(4, 3, batch_first=True)), {"layer": "rule"}),
    "gru, samples second, its last state": (lambda: recurrent(nn.GRU(4, 3, 2), states=True), {"layer": "rule"}),
    "gru, both ways": (lambda: both_ways(nn.GRU(4, 3, 2, bidirectional=True, batch_first=True)), {"layer": "rule"}),
    "rnn": (lambda: recurrent(nn.RNN(4, 3, 2)), {"layer": "rule"}),
    "rnn of relus": (lambda: both_ways(nn.RNN(4, 3, bidirectional=True, nonlinearity="relu")), {"layer": "rule"}),
    "encoder and decoder": (decoder, {"encode": "rule", "decode": "rule"}),
    "tied weights": (lambda: tied(False), {"tokens": "rule", "head": "rule"}),
    "tied weights, many rows": (lambda: tied(False, 200), {"tokens": "rule", "head": "rule"}),
    "weight used outside its layer": (lambda: tied(True), {"tokens": "vmap", "mix.0": "rule"}),
    "layer called twice": (
        lambda: (
            Net(lambda net, x: net.twice(torch.tanh(net.twice(x))), twice=nn.Linear(4, 4)), (floats(SAMPLES, 4),)
        ),
        {"twice": "rule"},
    ),
    "convolution called twice": (
        lambda: (
            Net(lambda net, x: net.twice(torch.tanh(net.twice(x))).flatten(1), twice=nn.Conv1d(2, 2, 3)),
            (floats(SAMPLES, 2, 6),),
        ),
        {"twice": "rule"},
    ),
    "custom layer called twice": (
        lambda: (
            Net(lambda net, x: net.twice(torch.tanh(net.twice(x))), twice=Scaled(4, 4)), (floats(SAMPLES, 4),)
        ),
        {"twice": "vmap"},
    ),
    "module under two names": (
        lambda: (
            Net(lambda net, x: net.b(torch.tanh(net.a(x))), **dict.fromkeys("ab", nn.Linear(4, 4))),
            (floats(SAMPLES, 4),),
        ),
        {"a": "rule"},
    ),
    "subclass with a forward of its own": (lambda: nested(Scaled(4, 4)), {"1": "vmap"}),
    "weight norm": (
        lambda: nested(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), {"1.parametrizations.weight": "vmap"}
    ),
    "weight norm without bias": (
        lambda: nested(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, bias=False))),
        {"1.parametrizations.weight": "vmap"},
    ),
    "old weight norm": (lambda: nested(old_weight_norm(nn.Linear(4, 4))), {"1": "vmap"}),
    "in-place activations": (in_place, dict.fromkeys(("first", "norm", "second", "head"), "rule")),
    "class token and positions": (vision_transformer, {"": "expand", "patches": "rule"}),
    "class token that is repeated": (lambda: vision_transformer(True), {"": "vmap", "patches": "rule"}),
    "position embedding": (lambda: positions(False), {"tokens": "rule", "positions": "rule"}),
    "position embedding in a dim of its own": (lambda: positions(True), {"tokens": "rule", "positions": "rule"}),
    "windows folded into the batch": (windows, {"inner": "rule", "norm": "rule", "act": "vmap"}),
    "experts that see some rows each": (experts, {"one": "one_by_one", "head": "rule"}),
    "attention with parameters of its own": (
        lambda: (after(OwnAttention(), 4, 24), (floats(SAMPLES, 6, 4),)), {"1.projections": "vmap", "0": "rule"}
    ),
    "sparse embedding": (
        lambda: (
            nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Tanh(), nn.Linear(24, 3)),
            (tokens(SAMPLES, 6),),
        ),
        {"0": "loop", "3": "rule"},
    ),
    "embedding that scales by frequency": (
        lambda: embedding(nn.Embedding(7, 4, scale_grad_by_freq=True)), {"0": "one_by_one", "3": "rule"}
    ),
    "position table that a layer returns": (position_table, {"positions": "vmap", "tokens": "rule"}),
    "class token beside scales": (scaled_vision_transformer, {"": "expand", "scale": "vmap", "other": "vmap"}),
    "bare parameter at the root": (
        lambda: (
            Net(
                lambda net, x: torch.tanh(x * net.scale) @ net.weight,
                scale=nn.Parameter(torch.randn(4)),
                weight=nn.Parameter(torch.randn(4, 3)),
            ),
            (floats(SAMPLES, 4),),
        ),
        {"": "vmap"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_norms_are_right_however_layers_are_put_together(name: str) -> None:
    build, expected = STRUCTURES[name]
    module, inputs = build()
    module = module.double().eval()
    plan = choose_methods(module, lambda: module(*inputs))
    assert {name: plan[name].method for name in expected} == expected
    assert_right(module, lambda: module(*inputs), plan)


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name.startswith(("self-attention", "encoder"))])
def test_attention_has_the_same_norms_where_its_graph_is_not_understood(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_probes.functional.per_sample.attention_rule._NODES", 0)
    test_norms_are_right_however_layers_are_put_together(name)


def test_attention_whose_weights_are_used_has_a_rule() -> None:
    layer = nn.MultiheadAttention(4, 2, bias=False, batch_first=True).double()
    net = Net(lambda net, x: torch.cat([y.flatten(1) for y in net.layer(x, x, x)], 1), layer=layer).double()
    x = floats(SAMPLES, 3, 4)
    assert {way.method for way in choose_methods(net, lambda: net(x)).values()} == {"rule"}
    assert_right(net, lambda: net(x))


@pytest.mark.parametrize("setting", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 3, "vdim": 2}])
def test_attention_with_other_settings_is_right(setting: dict[str, Any]) -> None:
    layer = nn.MultiheadAttention(4, 2, batch_first=True, **setting)
    net = Net(lambda net, x, key, value: net.layer(x, key, value)[0].flatten(1), layer=layer).double()
    x = floats(SAMPLES, 3, 4)
    inputs = (x, floats(SAMPLES, 3, 3), floats(SAMPLES, 3, 2)) if "kdim" in setting else (x, x, x)
    assert_right(net, lambda: net(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
def test_norms_are_right_for_transformers(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    if name == "gpt2":
        config = GPT2Config(vocab_size=8, n_positions=12, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        module, inputs = GPT2LMHeadModel(config), {"input_ids": tokens(SAMPLES, 6)}
    elif name == "bert":
        module = BertForSequenceClassification(
            BertConfig(vocab_size=8, max_position_embeddings=12, num_labels=3, **sizes)
        )
        inputs = {"input_ids": tokens(SAMPLES, 6), "attention_mask": (~padding(SAMPLES, 6)).long()}
    else:
        config = ViTConfig(image_size=8, patch_size=4, num_channels=2, num_labels=3, **sizes)
        module, inputs = ViTForImageClassification(config), {"pixel_values": floats(SAMPLES, 2, 8, 8).to(dtype)}
    module = module.to(dtype).eval()
    plan = choose_methods(module, lambda: module(**inputs).logits)
    assert "one_by_one" not in {way.method for way in plan.values()} or name == "bert"
    if name == "bert":  # its pooler sees the first token of each sample; nothing is left out
        assert plan["bert.embeddings.position_embeddings"].method == "rule"
    assert_right(module, lambda: module(**inputs).logits, plan)
    shorter = {name: value[:2] for name, value in inputs.items()}
    assert_right(module, lambda: module(**shorter).logits, plan)


def test_norms_hold_in_single_precision() -> None:
    for build in RULES.values():
        module, inputs = build()
        module = module.float().eval()
        inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        assert_right(module, lambda module=module, inputs=inputs: module(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_are_formed_in_single_precision_of_half_precision_gradients(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 3)).to(dtype)
    x = 30 * floats(SAMPLES, 4).to(dtype)
    cotangent = torch.full((SAMPLES, 3), 40.0, dtype=dtype)  # squares over 65504, the largest number of float16
    norms = per_sample_squared_grad_norms(module, lambda: module(x), lambda _: [cotangent])
    assert {way.method for way in choose_methods(module, lambda: module(x)).values()} == {"rule"}
    torch.testing.assert_close(norms["2.bias"], torch.full((1, SAMPLES), 4800.0, dtype=torch.float64))
    hidden = module[:2](x).double()
    torch.testing.assert_close(norms["2.weight"][0], 4800 * hidden.square().sum(1), rtol=1e-6, atol=0)


def test_norms_do_not_depend_on_autocast_around_the_call() -> None:
    module, x = nn.Linear(4, 3), floats(SAMPLES, 2, 4).float()

    def forward() -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return module(x)

    plain = per_sample_squared_grad_norms(module, forward, lambda logits: [random_like(logits)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = per_sample_squared_grad_norms(module, forward, lambda logits: [random_like(logits)])
    assert all(torch.equal(inside[name], plain[name]) for name in plain)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("methods", [None, "vmap", "loop", "one_by_one"])
def test_complex_parameters_count_both_parts(methods: Method | None) -> None:
    # The gradient that autograd gives of a matrix that is used conjugated is a lazy conjugate itself.
    weight = nn.Parameter(torch.complex(floats(3, 4), floats(3, 4)))
    x = floats(SAMPLES, 4)
    module = nn.Sequential(Net(lambda self, x: (x.to(self.weight.dtype) @ self.weight.mH).abs(), weight=weight))

    assert_right(module, lambda: module(x), methods)


@settings(max_examples=60)
@given(data=st.data())
def test_convolution_rules_hold_for_any_geometry(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 1, 2]))
    sizes = st.integers(1, 3)

    def each(numbers: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(data.draw(numbers) for _ in range(dims))

    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        groups * data.draw(sizes),
        groups * data.draw(sizes),
        kernel := each(sizes),
        stride=each(sizes),
        padding=each(st.integers(0, 2)),
        dilation=(dilation := each(st.integers(1, 2))),
        groups=groups,
        bias=data.draw(st.booleans()),
    ).double()  # fmt: skip
    extents = [d * (k - 1) + 1 + data.draw(st.integers(0, 2)) for k, d in zip(kernel, dilation, strict=True)]
    x = floats(2, layer.in_channels, *extents)
    grad = random_like(layer(x))
    expected = one_by_one(layer, layer(x), grad)
    with captured_calls(layer, {"": "first"}) as capture:
        layer(x)
    found = rule_of(layer)(layer, capture.calls[0], (grad,), "first", 2)  # type: ignore[misc]
    weight = found["weight"]
    assert isinstance(weight, Convolution)
    for norms in (
        weight.squared_norm(),
        weight._norms_by_gram(slice(0, 2)),
        weight.dense(slice(0, 2)).flatten(1).square().sum(1),
    ):
        torch.testing.assert_close(norms, expected["weight"])
    if layer.bias is not None:
        torch.testing.assert_close(found["bias"].squared_norm(), expected["bias"])


def test_any_parameter_layout_is_left_as_it_was() -> None:
    for name, (build, _) in STRUCTURES.items():
        module, inputs = build()
        module = module.double().eval()
        for parameter in [*module.parameters()][::2]:
            parameter.grad = torch.ones_like(parameter)
        module.get_parameter(next(iter(dict(module.named_parameters())))).requires_grad_(False)
        before = state_of(module)
        per_sample_squared_grad_norms(
            module, lambda module=module, inputs=inputs: module(*inputs), lambda z: [z.detach()]
        )
        assert state_of(module) == before, name


def state_of(module: nn.Module) -> Any:
    parameters = [
        (
            name,
            id(p),
            p._version,
            p.requires_grad,
            p._backward_hooks,
            p.grad is not None and (id(p.grad), p.grad._version),
        )
        for name, p in module.named_parameters(remove_duplicate=False)
    ]
    hooks = [
        len(hooks)
        for layer in module.modules()
        for name, hooks in sorted(layer.__dict__.items())
        if name.endswith("_hooks") and hooks is not None
    ]
    settings = torch.backends.cudnn.enabled, torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()
    return parameters, hooks, settings, torch.get_rng_state().tolist()


class Boom(BaseException):
    """Like KeyboardInterrupt, past whatever catches only `Exception`."""


@pytest.mark.parametrize("at", ["forward", "cotangents"])
@pytest.mark.parametrize("name", ["class token and positions", "gru", "tied weights"])
def test_everything_is_put_back_when_the_pass_raises(name: str, at: str) -> None:
    module, inputs = STRUCTURES[name][0]()
    module = module.double().eval()
    plan = choose_methods(module, lambda: module(*inputs))
    before = state_of(module)

    def forward() -> Tensor:
        logits = module(*inputs)
        if at == "forward":
            raise Boom
        return logits

    def cotangents(logits: Tensor) -> Iterable[Tensor]:
        raise Boom

    for methods in (plan, None):
        with pytest.raises(Boom):
            per_sample_squared_grad_norms(module, forward, cotangents, methods)
        assert state_of(module) == before
    handle = module.head.register_forward_pre_hook(lambda *_: raise_boom())
    with pytest.raises(Boom):
        per_sample_squared_grad_norms(module, lambda: module(*inputs), cotangents, plan)
    handle.remove()
    assert state_of(module) == before


def raise_boom() -> None:
    raise Boom


def test_frozen_parameters_are_left_out_and_cost_nothing() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double(), floats(SAMPLES, 4)
    module[0].requires_grad_(False)
    module[2].bias.requires_grad_(False)
    assert [*per_sample_squared_grad_norms(module, lambda: module(x), lambda z: [z])] == ["2.weight"]
    assert_right(module, lambda: module(x))
    with PlannedNorms(module, choose_methods(module, lambda: module(x)), owners_of(module)).captured() as capture:
        module(x)
    assert [call.name for call in capture.calls] == ["2"]


def test_a_plan_made_before_a_layer_was_thawed_is_made_anew() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double(), floats(SAMPLES, 4)
    module[0].requires_grad_(False)
    plan = choose_methods(module, lambda: module(x))
    module[0].requires_grad_(True)
    assert_right(module, lambda: module(x), plan)


def test_unused_parameters_have_norm_zero_until_they_are_used() -> None:
    used = False
    net = Net(
        lambda net, x: net.head(net.spare(x)) if used else net.head(x), head=nn.Linear(4, 3), spare=nn.Linear(4, 4)
    ).double()
    x = floats(SAMPLES, 4)
    plan = choose_methods(net, lambda: net(x))
    norms = per_sample_squared_grad_norms(net, lambda: net(x), lambda z: [z], plan)
    assert not norms["spare.weight"].any()
    used = True
    assert_right(net, lambda: net(x), plan)


def test_layers_under_no_grad_have_norm_zero() -> None:
    def function(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = net.first(x)
        return net.head(x)

    net = Net(function, first=nn.Linear(4, 4), head=nn.Linear(4, 3)).double()
    x = floats(SAMPLES, 4)
    assert not per_sample_squared_grad_norms(net, lambda: net(x), lambda z: [z])["first.weight"].any()
    assert_right(net, lambda: net(x))


def test_each_cotangent_has_its_row() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double(), floats(SAMPLES, 4)
    cotangents = [floats(SAMPLES, 3), 2 * floats(SAMPLES, 3), torch.zeros(SAMPLES, 3).double()]
    for name, norms in per_sample_squared_grad_norms(module, lambda: module(x), lambda _: cotangents).items():
        assert norms.shape == (3, SAMPLES), name
        torch.testing.assert_close(norms[1], 4 * norms[0])
        assert not norms[2].any()


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_plan_serves_a_copy_of_the_model_and_other_batch_sizes(name: str) -> None:
    module, inputs = STRUCTURES[name][0]()
    module = module.double().eval()
    batch_dim = [x.shape.index(SAMPLES) for x in inputs]
    plan = choose_methods(module, lambda: module(*inputs))
    if "weight norm" not in name:  # the old one can't be copied
        module = copy.deepcopy(module)
    if "mask" in name and "encoder" not in name:
        return  # the mask is of this batch
    for size in (1, 3):
        fewer = [x.narrow(dim, 0, size) for x, dim in zip(inputs, batch_dim, strict=True)]
        assert_right(module, lambda fewer=fewer: module(*fewer), plan)


def test_a_batch_as_large_as_sequences_are_long_does_not_confuse_a_plan() -> None:
    module, (x,) = encoder(False, 6)
    module = module.double().eval()
    plan = choose_methods(module, lambda: module(x))
    square = torch.cat([x, x[:, :1]], dim=1)
    assert square.shape[:2] == (6, 6)
    assert_right(module, lambda: module(square), plan)


class Mixer(nn.Linear):
    """Mixes positions before it mixes features."""

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        return super().forward(mixing @ x)


def test_an_argument_shared_by_samples_stays_shared_when_it_has_as_many_rows() -> None:
    net = Net(
        lambda net, x, mixing: net.head(net.mixer(x, mixing).tanh().sum(1)), mixer=Mixer(4, 4), head=nn.Linear(4, 3)
    )
    net, mixing = net.double(), floats(3, 3)
    plan = choose_methods(net, lambda: net(floats(SAMPLES, 3, 4), mixing))
    assert plan["mixer"].method == "vmap"
    assert_right(net, lambda: net(floats(3, 3, 4), mixing), plan)


def test_cudnn_is_off_for_recurrent_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recurrent kernels have no backward pass in eval mode."""
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    for name, expected in (("gru", False), ("encoder layer", True)):
        module, inputs = STRUCTURES[name][0]()
        module, seen = module.double().eval(), set()

        def forward(module: nn.Module = module, inputs: Any = inputs, seen: set[bool] = seen) -> Tensor:
            seen.add(torch.backends.cudnn.enabled)
            return module(*inputs)

        per_sample_squared_grad_norms(module, forward, lambda z: [z])
        assert seen == {expected}
        assert torch.backends.cudnn.enabled


def test_a_batch_that_a_plan_does_not_fit_names_the_layer() -> None:
    net = Net(
        lambda net, x: net.head(net.inner(x.flatten(0, -2)).view(len(x), -1)),
        inner=nn.Linear(4, 4),
        head=nn.Linear(4, 3),
    ).double()
    x = floats(SAMPLES, 4)
    plan = choose_methods(net, lambda: net(x))
    net.head, x = nn.Linear(8, 3).double(), floats(SAMPLES, 2, 4)
    expected = r"layer 'inner' was called in another way .*\(expected 5 samples in dim 0, found shape \(10, 4\)\): pass"
    with pytest.raises(ValueError, match=expected):
        per_sample_squared_grad_norms(net, lambda: net(x), lambda z: [z], plan)


def test_layers_that_start_at_zero_are_given_the_right_way() -> None:
    """At its initialisation the gradient of all but the head is zero here, which any way would agree with."""
    module, (x,) = encoder(False, SAMPLES)
    module = module.double().eval()
    nn.init.zeros_(module.head.weight)
    plan = choose_methods(module, lambda: module(x))
    nn.init.normal_(module.head.weight)
    assert_right(module, lambda: module(x), plan)


def test_a_layer_whose_output_a_hook_changes_is_not_given_a_rule() -> None:
    module, (x,) = nested(nn.Linear(4, 4))
    module = module.double()
    module[1].register_forward_hook(lambda layer, args, output: output**2 + layer.weight.sum())
    assert choose_methods(module, lambda: module(x))["1"].method == "vmap"
    assert_right(module, lambda: module(x))


class Gate(nn.Linear):
    """Needs its input for its gradient, but not where autograd would see that."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.exp().sum(0) * (x > 0)


def test_an_input_that_is_overwritten_leads_to_another_way() -> None:
    def function(net: Any, x: Tensor) -> Tensor:
        x = x.clone()
        gated = net.gate(x)
        return net.head(gated + x.neg_().abs())

    net, x = Net(function, gate=Gate(4, 4, bias=False), head=nn.Linear(4, 3)).double(), floats(SAMPLES, 4)
    way = choose_methods(net, lambda: net(x))["gate"]
    assert (way.method, way.unit) == ("vmap", "")
    assert_right(net, lambda: net(x))


def test_activations_that_are_checkpointed_give_the_same_norms() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net = Net(lambda net, x: net.head(checkpoint(net.inner, x, use_reentrant=False)), inner=inner, head=nn.Linear(4, 3))
    net, x = net.double(), floats(SAMPLES, 4)
    assert {way.method for way in choose_methods(net, lambda: net(x)).values()} == {"rule"}
    assert_right(net, lambda: net(x))


class Remembers(nn.Linear):
    """Keeps what it gave last."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_what_a_layer_keeps_is_from_the_forward_pass(method: Method) -> None:
    """Not from its repetition for single samples, whose tensors must not get out of `vmap`."""
    module, x = nn.Sequential(Remembers(4, 4), nn.Linear(4, 3)).double(), floats(SAMPLES, 4)
    plan = choose_methods(module, lambda: module(x), (method,))
    assert not hasattr(module[0], "last")
    per_sample_squared_grad_norms(module, lambda: module(x), lambda z: [z], plan)
    assert torch.equal(module[0].last, module[0](x))


def test_embeddings_that_rescale_or_renormalise_have_no_rule() -> None:
    assert rule_of(nn.Embedding(7, 4)) is not None
    for setting in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}):
        assert rule_of(nn.Embedding(7, 4, **setting)) is None  # type: ignore[arg-type]


def test_batch_statistics_are_refused() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(SAMPLES, 4)
    for choose in (choose_methods, lambda m, f: per_sample_squared_grad_norms(m, f, lambda z: [z], {})):
        with pytest.raises(ValueError, match=r"BatchNorm1d '1' uses batch statistics; give it running statistics"):
            choose(module, lambda: module(x))
    module[1] = nn.BatchNorm1d(4, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="track_running_stats=True"):
        choose_methods(module, lambda: module(x))


def test_logits_without_a_trainable_parameter_are_refused() -> None:
    module = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"no trainable parameter.*pass predict_fn= that keeps the graph"):
        choose_methods(module, lambda: module(torch.ones(2, 4)).detach())


def test_a_pass_that_differs_each_time_is_refused() -> None:
    wide = 64  # so that no two passes drop the same by chance
    module = nn.Sequential(nn.Linear(4, wide), nn.Dropout(0.5), nn.Linear(wide, 3))
    with pytest.raises(ValueError, match="two passes of the model gave different gradients: pass predict_fn="):
        choose_methods(module, lambda: module(torch.ones(SAMPLES, 4)))


def test_what_is_not_finite_shows_in_the_norms_and_not_in_the_choice() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), floats(SAMPLES, 4).float()
    x[1] = float("nan")
    plan = choose_methods(module, lambda: module(x))
    assert {way.method for way in plan.values()} == {"rule"}
    norms = per_sample_squared_grad_norms(module, lambda: module(x), lambda z: [torch.ones_like(z)], plan)
    assert norms["2.weight"].isnan().tolist() == [[False, True, False, False, False]]


def test_each_layer_and_its_method_are_logged_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Sequential(nn.Linear(4, 4), Scaled(4, 4, bias=False))
    with caplog.at_level(logging.DEBUG, logger="lightning_probes.functional.per_sample.squared_norms"):
        choose_methods(module, lambda: module(torch.ones(SAMPLES, 4)))
    messages = [record.getMessage() for record in caplog.records]
    for start in ("1: Way(method='expand'", "0 (Linear): Way(method='rule'", "1 (Scaled): Way(method='vmap'"):
        assert any(message.startswith(start) for message in messages), (start, messages)


def test_the_graph_is_freed_without_the_garbage_collector() -> None:
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), torch.ones(SAMPLES, 4)
    plan = choose_methods(module, lambda: module(x))
    alive: list[weakref.ref[Any]] = []

    def forward() -> Tensor:
        logits = module(x)
        alive.append(weakref.ref(logits))
        marker = torch.ones(1)
        alive.append(weakref.ref(marker))
        logits.register_hook(lambda grad, marker=marker: None)
        return logits

    gc.collect()
    gc.disable()
    try:
        per_sample_squared_grad_norms(module, forward, lambda z: [z], plan)
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()
