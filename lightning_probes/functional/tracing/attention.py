"""Attention weights of a pass, seen without touching the module's code.

Three ways to compute attention are seen: `scaled_dot_product_attention`, whose weights are computed again from its
arguments; `multi_head_attention_forward`, which is asked for its weights; and a softmax over the last dim whose result
multiplies values. A kernel of another library and compiled code are not seen.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lightning_probes.functional.plain import plain
from lightning_probes.functional.tracing.functions import FunctionCall, OnEnter, watch_functions
from lightning_probes.functional.wide import at_least_single

# Entries of scores and masks below this are masked: models use -1e4, -1e9, the lowest number of a dtype, or -inf.
_MASKED = -5000.0
_CLOSED = -1e30  # added to scores; finite, so that a query without keys has no nan
_MOST = 2**20  # elements of the weights that are computed at a time
_MOST_IN_CACHE = 2**18  # on a CPU, where more of them take twice the time
# What may happen to weights between the softmax and the product with values.
_KEEPING = """
    to float half bfloat16 type type_as clone contiguous detach dropout dropout_ view view_as reshape flatten unflatten
    squeeze unsqueeze masked_fill masked_fill_ nan_to_num mul __mul__
"""
_KEPT = frozenset(_KEEPING.split())
_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "einsum"})

Part: TypeAlias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one attention layer.

    Attributes:
        number: Number of samples, times the number of windows where attention is within windows.
        heads: Number of heads.
        queries: Number of queries.
        keys: Number of keys.
        part: Returns the weights of some samples, `(samples, heads, queries, keys)`, and which keys a query may attend
            to, `(samples or 1, queries or 1, keys)`, or None if all.
        device: Where the weights are.
    """

    number: int
    heads: int
    queries: int
    keys: int
    part: Callable[[slice], Part]
    device: torch.device

    def parts(self) -> Iterator[Part]:
        """The weights of all samples, a few samples at a time."""
        most = min(_MOST, _MOST_IN_CACHE) if self.device.type == "cpu" else _MOST
        size = max(1, most // max(1, self.heads * self.queries * self.keys))
        for start in range(0, self.number, size):
            yield self.part(slice(start, start + size))


OnMap: TypeAlias = Callable[[str, AttentionMap], None]


@contextmanager
def watch_attention(
    module: nn.Module, samples: int, on_map: OnMap, on_enter: OnEnter | None = None,
    on_other: Callable[[FunctionCall, Any], None] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Call `on_map(layer, map)` for each attention inside the block, without gradients being recorded.

    Args:
        module: The module of a twin.
        samples: Number of samples of the pass.
        on_map: Called while the layer runs. A layer that attends twice in a call is `layer[2]` the second time, and
            the module itself is `root`.
        on_enter: Called before each call of a submodule; see `watch_functions`.
        on_other: Called after any other function with its call and its result.

    Example:
        >>> net, inputs = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
        >>> def on_map(layer, seen):
        ...     print(seen.heads, seen.queries, seen.keys)
        >>> with watch_attention(net, 3, on_map):
        ...     output = net(inputs, inputs, inputs, need_weights=False)
        2 5 5
    """
    watching = _Watching(samples, on_map, on_other)
    with watch_functions(module, watching.on_call, on_enter):
        yield


class _Watching:
    def __init__(self, samples: int, on_map: OnMap, on_other: Callable[[FunctionCall, Any], None] | None) -> None:
        self._samples, self._on_map, self._on_other = samples, on_map, on_other
        self._seen: Counter[str] = Counter()
        self._weights: WeakIdKeyDictionary = WeakIdKeyDictionary()  # to which keys are open

    def on_call(self, call: FunctionCall) -> Any:
        if call.name == "multi_head_attention_forward":
            return self._multi_head(call)
        if call.name == "scaled_dot_product_attention":
            with torch.no_grad():
                self._show(call.layer, _dot_product(self._samples, *call.args, **call.kwargs))
            return call.run()
        if call.name in _PRODUCTS:
            self._product(call)
        result = call.run()
        if call.name in ("softmax", "_softmax"):
            self._softmax(call, result)
        elif call.name in _KEPT and isinstance(result, Tensor):
            given = next((tensor for tensor in call.tensors if tensor in self._weights), None)
            if given is not None:
                self._weights[result] = self._weights[given]
        if self._on_other is not None:
            self._on_other(call, result)
        return result

    def _show(self, layer: str, seen: AttentionMap) -> None:
        layer = layer or "root"
        self._seen[layer] += 1
        self._on_map(layer if self._seen[layer] == 1 else f"{layer}[{self._seen[layer]}]", seen)

    def _softmax(self, call: FunctionCall, result: Any) -> None:
        if not isinstance(result, Tensor) or result.ndim < 3 or not result.is_floating_point():
            return
        given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
        if given in (-1, result.ndim - 1) and (result.ndim > 3 or result.shape[0] % self._samples == 0):
            with torch.no_grad():
                scores = by_head(call.tensors[0], self._samples)
                # A masked entry is masked in all heads. (A comparison with nan is False, so nan counts as open.)
                self._weights[result] = ~(scores.amax(1) < _MASKED)

    def _product(self, call: FunctionCall) -> None:
        first = next((tensor for tensor in call.tensors if tensor in self._weights), None)
        if first is None or (call.name != "einsum" and first is not call.tensors[0]):
            return
        with torch.no_grad():
            weights, opened = by_head(first, self._samples), self._weights[first]
            if len(weights) == len(opened) and weights.shape[-2:] == opened.shape[-2:]:
                self._show(call.layer, _computed(weights, None if bool(opened.all()) else opened))

    def _multi_head(self, call: FunctionCall) -> Any:
        bound = inspect.signature(call.function).bind(*call.args, **call.kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        asked = {**given, "need_weights": True, "average_attn_weights": False}
        opened = _open_keys(given)
        if opened is not None and not bool(opened.any(-1).all()):
            # A query without keys gets nan if weights are asked for, and else 0: keep what the model computes.
            result = call.run()
            with torch.no_grad():
                weights = call.function(**asked)[1]
        else:
            output, weights = call.function(**asked)
            averaged = given["average_attn_weights"]
            result = output, (weights.mean(-3) if averaged else weights) if given["need_weights"] else None
        with torch.no_grad():
            weights = plain(weights)
            self._show(call.layer, _computed(weights if weights.ndim == 4 else weights[None], opened))
        return result


def by_head(tensor: Tensor, samples: int) -> Tensor:
    """A tensor of shape (..., heads, a, b), (samples * heads, a, b) or (samples, a, b) as (number, heads, a, b)."""
    tensor = plain(tensor)
    if tensor.ndim == 3:
        together = samples if len(tensor) % samples == 0 else len(tensor)
        return tensor.reshape(together, -1, *tensor.shape[1:])
    return tensor.reshape(-1, *tensor.shape[-3:])


def _computed(weights: Tensor, opened: Tensor | None) -> AttentionMap:
    """Weights that the model has computed."""
    number, heads, queries, keys = weights.shape

    def part(chosen: slice) -> Part:
        return weights[chosen].detach(), opened if opened is None or len(opened) == 1 else opened[chosen]

    return AttentionMap(number, heads, queries, keys, part, weights.device)


def _dot_product(
    samples: int, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> AttentionMap:  # fmt: skip
    """The weights of `scaled_dot_product_attention` for its arguments."""
    query, key = plain(query), plain(key)
    shape = (*query.shape[:-1], key.shape[-2])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    queries, keys = by_head(query.detach(), samples), by_head(key.detach(), samples)
    mask = None if attn_mask is None else by_head(plain(attn_mask).detach().expand(shape), samples)
    causal = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()[None] if is_causal else None

    def part(chosen: slice) -> Part:
        q, k, opened = at_least_single(queries[chosen]) * scale, at_least_single(keys[chosen]), causal
        if enable_gqa:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q @ k.transpose(-1, -2)
        if mask is not None:
            some = mask[chosen][:, :1] if mask.stride(1) == 0 else mask[chosen]  # one mask for all heads
            boolean = some.dtype == torch.bool
            is_open = (some if boolean else ~(some < _MASKED)).any(1)
            scores += _CLOSED * ~some if boolean else some
            opened = is_open if opened is None else opened & is_open
        if causal is not None:
            scores += _CLOSED * ~causal
        return scores.softmax(-1), opened

    return AttentionMap(len(queries), queries.shape[1], shape[-2], shape[-1], part, queries.device)


def _open_keys(given: dict[str, Any]) -> Tensor | None:
    """The keys that a query may attend to, by the masks of `multi_head_attention_forward`; None without masks."""
    opened: Tensor | None = None
    if (mask := given["attn_mask"]) is not None:
        opened = ~mask if mask.dtype == torch.bool else ~(mask < _MASKED)
        opened = opened[None] if opened.ndim == 2 else opened.unflatten(0, (-1, given["num_heads"])).any(1)
    if (padding := given["key_padding_mask"]) is not None:
        by_key = ~padding if padding.dtype == torch.bool else ~(padding < _MASKED)
        by_key = by_key[:, None] if by_key.ndim == 2 else by_key[None, None]
        opened = by_key if opened is None else opened & by_key
    return opened
