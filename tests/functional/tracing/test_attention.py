"""Attention weights are seen in any module, as it computes them, and its output stays what it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from lightning_probes.functional.fast_path import without_fast_path
from lightning_probes.functional.tracing.attention import watch_attention

SAMPLES, TOKENS, WIDTH, HEADS = 3, 7, 32, 4
Seen = list[tuple[str, Tensor, Tensor | None]]


def seen(module: nn.Module, run: Callable[[], Any], samples: int = SAMPLES) -> tuple[Seen, Any]:
    found: Seen = []

    def on_map(layer: str, each: Any) -> None:
        parts = [*each.parts()]
        opened = [part for _, part in parts if part is not None]
        found.append((layer, torch.cat([weights for weights, _ in parts]), torch.cat(opened) if opened else None))

    with torch.no_grad(), watch_attention(module, samples, on_map):
        output = run()
    return found, output


def computing(forward: Callable[..., Tensor]) -> tuple[nn.Module, Tensor]:
    """A module with linear layers `q`, `k`, `v` that computes something on (3, 7, 32) inputs."""

    class Computing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    torch.manual_seed(0)
    return Computing().eval(), torch.randn(SAMPLES, TOKENS, WIDTH)


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def scores(net: Any, x: Tensor) -> Tensor:
    return split(net.q(x)) @ split(net.k(x)).transpose(-1, -2) / math.sqrt(WIDTH // HEADS)


CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
ADDED = torch.zeros(TOKENS, TOKENS).masked_fill(~CAUSAL, -math.inf)
WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "eager": lambda net, x: scores(net, x).softmax(-1) @ split(net.v(x)),
    "eager, then dropout and a cast": lambda net, x: torch.matmul(
        dropout(scores(net, x).softmax(-1, dtype=torch.float64), 0.5, False).to(x.dtype), split(net.v(x))
    ),
    "einsum": lambda net, x: torch.einsum("bhij,bhjd->bhid", scores(net, x).softmax(3), split(net.v(x))),
    "samples and heads together": lambda net, x: torch.bmm(
        nn.Softmax(dim=-1)(scores(net, x).flatten(0, 1)), split(net.v(x)).flatten(0, 1)
    ),
    "scaled dot product": lambda net, x: scaled_dot_product_attention(
        split(net.q(x)), split(net.k(x)), split(net.v(x))
    ),
}
MASKED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "eager": lambda net, x: scores(net, x).masked_fill(~CAUSAL, -1e9).softmax(-1) @ split(net.v(x)),
    "causal": lambda net, x: scaled_dot_product_attention(
        split(net.q(x)), split(net.k(x)), split(net.v(x)), is_causal=True
    ),
    "boolean": lambda net, x: scaled_dot_product_attention(
        split(net.q(x)), split(net.k(x)), split(net.v(x)), attn_mask=CAUSAL
    ),
    "additive": lambda net, x: scaled_dot_product_attention(
        split(net.q(x)), split(net.k(x)), split(net.v(x)), attn_mask=ADDED[None, None]
    ),
}


@pytest.mark.parametrize("forward", WAYS.values(), ids=WAYS)
def test_weights_are_those_that_the_model_computes(forward: Callable[[Any, Tensor], Tensor]) -> None:
    net, x = computing(forward)
    with torch.no_grad():
        expected, output = scores(net, x).softmax(-1), net(x)
    [(layer, weights, opened)], watched = seen(net, lambda: net(x))
    assert layer == "root"
    assert torch.allclose(weights, expected, atol=1e-6)
    assert opened is None
    assert torch.equal(watched, output)


@pytest.mark.parametrize("forward", MASKED.values(), ids=MASKED)
def test_masked_keys_have_no_weight_and_are_not_open(forward: Callable[[Any, Tensor], Tensor]) -> None:
    net, x = computing(forward)
    with torch.no_grad():
        expected = scores(net, x).masked_fill(~CAUSAL, -math.inf).softmax(-1)
    [(_, weights, opened)], _ = seen(net, lambda: net(x))
    assert torch.allclose(weights, expected, atol=1e-6)
    assert opened is not None
    assert torch.equal(opened.expand(SAMPLES, -1, -1), CAUSAL.expand(SAMPLES, -1, -1))


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_weights_of_multihead_attention_are_its_own_and_it_returns_what_was_asked_for(
    asked: bool, averaged: bool
) -> None:
    net, x = computing(lambda net, x: net.attention(x, x, x, need_weights=asked, average_attn_weights=averaged))
    layer: Any = net.attention
    with torch.no_grad():
        output, returned = net(x)
        expected = layer(x, x, x, average_attn_weights=False)[1]
    [(name, weights, _)], watched = seen(net, lambda: net(x))
    assert name == "attention"
    assert torch.equal(weights, expected)
    assert torch.allclose(watched[0], output, atol=1e-6)
    assert (watched[1] is None) == (returned is None)
    assert returned is None or torch.allclose(watched[1], returned)


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layers_are_seen_on_the_fast_path_with_padding_closed(norm_first: bool) -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True, norm_first=norm_first)
    net, x = nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first).eval(), torch.randn(3, TOKENS, WIDTH)
    padding = torch.arange(TOKENS) >= torch.tensor([TOKENS, 5, 4])[:, None]
    found, output = seen(net, lambda: net(x, src_key_padding_mask=padding))
    assert [layer for layer, *_ in found] == ["layers.0.self_attn", "layers.1.self_attn"]
    with torch.no_grad():
        plain = net(x, src_key_padding_mask=padding)
    assert torch.allclose(output[~padding], plain[~padding], atol=1e-5)
    for _, weights, opened in found:
        assert torch.allclose(weights.sum(-1), torch.ones(()))
        assert opened is not None
        assert torch.equal(opened.expand(-1, TOKENS, -1), ~padding[:, None].expand(-1, TOKENS, -1))


def test_a_query_without_keys_leaves_the_output_as_it_is() -> None:
    padding = torch.zeros(SAMPLES, TOKENS, dtype=torch.bool)
    padding[0, :2] = True  # with the causal mask, the first two queries of the first sample have no key
    net, x = computing(lambda net, x: net.attention(x, x, x, padding, need_weights=False, attn_mask=~CAUSAL)[0])
    with torch.no_grad(), without_fast_path():  # on which such a query gets nan
        expected = net(x)
    assert expected.isfinite().all()
    [(_, _, opened)], output = seen(net, lambda: net(x))
    assert torch.equal(output, expected)
    assert opened is not None
    assert opened.any(-1).sum(-1).tolist() == [TOKENS - 2, TOKENS, TOKENS]


def test_grouped_keys_are_repeated_and_a_scale_is_applied() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(SAMPLES, 4, TOKENS, 8), torch.randn(SAMPLES, 2, TOKENS, 8)
    net = nn.Module()
    found, _ = seen(net, lambda: scaled_dot_product_attention(q, k, k, scale=0.5, enable_gqa=True))
    expected = (q @ k[:, [0, 0, 1, 1]].transpose(-1, -2) / 2).softmax(-1)
    assert torch.allclose(found[0][1], expected, atol=1e-6)


OTHER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a softmax over classes": lambda net, x: net.q(x).unflatten(-1, (HEADS, -1)).softmax(-1).log(),
    "a softmax over another dim": lambda net, x: scores(net, x).softmax(1) @ split(net.v(x)),
    "gates of experts": lambda net, x: net.q(x).softmax(-1)[..., :1] * net.v(x),
}


@pytest.mark.parametrize("forward", OTHER.values(), ids=OTHER)
def test_a_softmax_that_multiplies_no_values_is_no_attention(forward: Callable[[Any, Tensor], Tensor]) -> None:
    net, x = computing(forward)
    assert seen(net, lambda: net(x))[0] == []


def test_two_attentions_of_one_call_have_two_names() -> None:
    net, x = computing(lambda net, x: WAYS["eager"](net, x) + WAYS["scaled dot product"](net, x))
    assert [layer for layer, *_ in seen(net, lambda: net(x))[0]] == ["root", "root[2]"]


def test_large_maps_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = computing(WAYS["scaled dot product"])
    [(_, whole, _)], _ = seen(net, lambda: net(x))
    monkeypatch.setattr("lightning_probes.functional.tracing.attention._MOST", 2 * HEADS * TOKENS**2)
    sizes: list[int] = []
    with (
        torch.no_grad(),
        watch_attention(net, SAMPLES, lambda _, each: sizes.extend(len(weights) for weights, _ in each.parts())),
    ):
        net(x)
    assert sizes == [2, 1]
    assert len(whole) == SAMPLES
