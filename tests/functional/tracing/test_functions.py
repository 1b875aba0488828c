"""What a pass calls is seen with the layer that calls it, and may be replaced."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes.functional.tracing.functions import FunctionCall, watch_functions


def test_layers_are_named_by_their_calls() -> None:
    relu, seen = nn.ReLU(), []

    def on_call(call: FunctionCall) -> Any:
        seen.append((call.layer, call.name))
        return call.run()

    net, x = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu), torch.ones(1, 2)
    with watch_functions(net, on_call):
        net(x).add_(x.T.sum())
    assert seen == [
        ("0", "linear"), ("1", "relu"), ("2", "linear"), ("1#2", "relu"), ("", "T"), ("", "sum"), ("", "add_"),
    ]  # fmt: skip


def test_only_some_functions_are_watched() -> None:
    net, x, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2), []
    with watch_functions(net, lambda call: seen.append((call.layer, call.name)), only=frozenset({"relu"})):
        net(x)
    assert seen == [("1", "relu")]


def test_a_layer_that_raises_is_left() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(3, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wide(x)
            except RuntimeError:
                return self.narrow(x) * 2

    seen = []

    def on_call(call: FunctionCall) -> Any:
        seen.append((call.layer, call.name))
        return call.run()

    net, x = nn.Sequential(Tries()), torch.ones(1, 2)
    with watch_functions(net, on_call):
        net(x)
    assert seen == [("0.wide", "linear"), ("0.narrow", "linear"), ("0", "mul")]


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_call_may_be_made_with_other_arguments(need_weights: bool) -> None:
    """As for attention maps: weights of each head, whatever the layer asks for, and the output that it asked for."""
    maps: list[Tensor] = []

    def on_call(call: FunctionCall) -> Any:
        if call.name != "multi_head_attention_forward":
            return call.run()
        bound = inspect.signature(F.multi_head_attention_forward).bind(*call.args, **call.kwargs)
        wanted = {**bound.arguments, "need_weights": True, "average_attn_weights": False}
        output, weights = call.function(**wanted)
        maps.append(weights)
        return output, weights.mean(1) if need_weights else None

    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        expected, averaged = attention(x, x, x, need_weights=need_weights)
        with watch_functions(attention, on_call):
            output, weights = attention(x, x, x, need_weights=need_weights)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, averaged)
    assert [tuple(each.shape) for each in maps] == [(3, 2, 5, 5)]
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(3, 2, 5))
