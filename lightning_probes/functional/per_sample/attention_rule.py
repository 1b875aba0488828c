"""Per-sample gradients of `nn.MultiheadAttention`, whose projections are not layers with hooks.

The projections are found in the autograd graph of the output. If that fails (queries differ from keys), the computation
between the projections runs again, once for the whole batch. Each projection is then treated like a linear layer.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from lightning_probes.functional.layer_capture import Call
from lightning_probes.functional.per_sample.sample_gradients import Contribution, Dense, Outer, Stacked
from lightning_probes.functional.wide import at_least_single

_NODES = 200
"""Maximum number of graph nodes to search: a few times the number that one call creates."""


def projection_edges(layer: nn.Module, output: Any) -> tuple[GradientEdge, ...]:
    """Graph edges of the input projection and the output projection in a call of `nn.MultiheadAttention`.

    Returns:
        Both edges; empty for other layers, or if one is not found (queries differ from keys).
    """
    if type(layer) is not nn.MultiheadAttention or layer.in_proj_weight is None or output[0].grad_fn is None:
        return ()
    first = _node_using(layer.in_proj_weight, output[0].grad_fn)
    last = _node_using(layer.out_proj.weight, output[0].grad_fn)
    return () if first is None or last is None else (GradientEdge(first, 0), GradientEdge(last, 0))


def attention_rule(
    layer: nn.MultiheadAttention, call: Call, grads: tuple[Tensor | None, ...], samples: int
) -> dict[str, Contribution]:
    """Contributions of the input and the output projection, by parameter name in the layer.

    Args:
        layer: With one weight for queries, keys and values.
        call: A call of the layer with batched inputs.
        grads: Gradients of the output, of the attention weights, and at the `projection_edges` if there are any.
        samples: Number of samples in the batch.

    Raises:
        ValueError: If there are no `projection_edges`, and the layer has `bias_k` or `add_zero_attn`, or a gradient
            reaches the attention weights.
    """
    given = inspect.signature(layer.forward).bind(*call.args, **call.kwargs).arguments
    inputs = [given[name].detach() for name in ("query", "key", "value")]
    if not layer.batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    if len(call.edges) > len(call.shapes):
        last: Any = call.edges[-1].node
        found = (grads[-1], last._saved_mat1 if hasattr(last, "_saved_mat1") else last._saved_self, grads[-2])
        # In the rows of both projections the sample index varies fastest, the position slowest.
        grad, attended, *reaching = (x.view(-1, samples, x.shape[1]).transpose(0, 1) for x in found if x is not None)
    else:
        grad, attended, *reaching = _run_again(layer, inputs, given, grads, samples)

    inputs, reaching = [at_least_single(x) for x in inputs], [at_least_single(x) for x in reaching]
    grad, shape = at_least_single(grad), layer.out_proj.weight.shape
    if len(reaching) == 1:
        in_proj: Contribution = Outer(reaching[0], inputs[0], layer.in_proj_weight.shape)
    else:
        in_proj = Stacked([Outer(left, right, shape) for left, right in zip(reaching, inputs, strict=True)])
    return {
        "in_proj_weight": in_proj,
        "in_proj_bias": Dense(torch.cat([left.sum(1) for left in reaching], dim=1)),
        "out_proj.weight": Outer(grad, at_least_single(attended), shape),
        "out_proj.bias": Dense(grad.sum(1)),
    }


def _node_using(weight: Tensor, node: Node) -> Node | None:
    """The closest node before `node` that multiplies by the weight."""
    ahead, seen = deque([node]), {node}
    while ahead and len(seen) < _NODES:
        node = ahead.popleft()
        for before, _ in node.next_functions:
            if before is None or before in seen:
                continue
            leaf = before.next_functions[0][0] if before.name() == "TBackward0" else None  # weight is transposed
            if getattr(leaf, "variable", None) is weight:
                return node
            seen.add(before)
            ahead.append(before)
    return None


def _run_again(
    layer: nn.MultiheadAttention,
    inputs: list[Tensor],
    given: Mapping[str, Any],
    grads: tuple[Tensor | None, ...],
    samples: int,
) -> tuple[Tensor, ...]:
    """Repeat attention between the projections: output gradient, input of the last one, gradients at the first ones."""
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        raise ValueError("the rule needs queries, keys and values of one width, no bias_k and add_zero_attn=False")
    grad = grads[0]
    if grad is None or any(other is not None for other in grads[1:]):
        raise ValueError("a gradient reaches the attention weights, but the rule covers the output only")
    grad = grad if layer.batch_first else grad.transpose(0, 1)
    biases = (None, None, None) if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    weights = layer.in_proj_weight.chunk(3)
    projected = [F.linear(x, w, b).requires_grad_() for x, w, b in zip(inputs, weights, biases, strict=True)]
    mask = _additive_mask(given.get("attn_mask"), given.get("key_padding_mask"), layer.num_heads, samples, grad.dtype)
    with torch.enable_grad():
        query, key, value = (x.view(*x.shape[:2], layer.num_heads, -1).transpose(1, 2) for x in projected)
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
    reaching = torch.autograd.grad(attended, projected, grad @ layer.out_proj.weight)
    return grad, attended.detach(), *reaching


def _additive_mask(
    attention: Tensor | None, padding: Tensor | None, heads: int, samples: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks of the layer combined, to be added to the scores; broadcastable to `(samples, heads, T, S)`."""
    masks = []
    if attention is not None:
        masks.append(attention.view(samples, heads, *attention.shape[1:]) if attention.ndim == 3 else attention)
    if padding is not None:
        masks.append(padding[:, None, None, :])
    if not masks:
        return None
    minus_infinity = torch.tensor(float("-inf"), dtype=dtype, device=masks[0].device)
    added = [torch.where(mask, minus_infinity, 0) if mask.dtype == torch.bool else mask.to(dtype) for mask in masks]
    return added[0] + added[1] if len(added) == 2 else added[0]
