"""Per-sample gradients of `nn.MultiheadAttention`, whose projections are not layers that hooks could see.

What goes on between the projections is run again, once for the whole batch, to find the gradients that reach them. Each
projection is then a linear layer like any other.
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes.functional.layer_capture import Call
from lightning_probes.functional.sample_gradients import Contribution, Dense, Outer, Stacked, at_least_single


def attention_rule(
    layer: nn.MultiheadAttention, call: Call, grads: tuple[Tensor | None, ...], samples: int
) -> dict[str, Contribution]:
    """Contributions of the input and the output projection, by parameter name in the layer.

    Args:
        layer: With queries, keys and values of one width, and neither `bias_k` nor `add_zero_attn`.
        call: Its call, with batched inputs.
        grads: Gradient of the output, and of the attention weights.
        samples: How many samples the batch has.

    Raises:
        ValueError: If the layer has other settings, or a gradient reaches the attention weights.
    """
    grad = grads[0]
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        raise ValueError("only for queries, keys and values of one width, without bias_k and add_zero_attn")
    if grad is None or any(other is not None for other in grads[1:]):
        raise ValueError("a gradient reaches the attention weights, and not the output alone")
    given = inspect.signature(layer.forward).bind(*call.args, **call.kwargs).arguments
    inputs = [given[name].detach() for name in ("query", "key", "value")]
    is_self_attention = given["query"] is given["key"] is given["value"]
    if not layer.batch_first:
        inputs, grad = [x.transpose(0, 1) for x in inputs], grad.transpose(0, 1)

    biases = (None, None, None) if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    weights = layer.in_proj_weight.chunk(3)
    projected = [F.linear(x, w, b).requires_grad_() for x, w, b in zip(inputs, weights, biases, strict=True)]
    mask = _additive_mask(given.get("attn_mask"), given.get("key_padding_mask"), layer.num_heads, samples, grad.dtype)
    with torch.enable_grad():
        query, key, value = (x.view(*x.shape[:2], layer.num_heads, -1).transpose(1, 2) for x in projected)
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
    reaching = [at_least_single(x) for x in torch.autograd.grad(attended, projected, grad @ layer.out_proj.weight)]

    inputs = [at_least_single(x) for x in inputs]
    grad, shape = at_least_single(grad), layer.out_proj.weight.shape
    if is_self_attention:
        in_proj: Contribution = Outer(torch.cat(reaching, dim=2), inputs[0], layer.in_proj_weight.shape)
    else:
        in_proj = Stacked([Outer(left, right, shape) for left, right in zip(reaching, inputs, strict=True)])
    return {
        "in_proj_weight": in_proj,
        "in_proj_bias": Dense(torch.cat([left.sum(1) for left in reaching], dim=1)),
        "out_proj.weight": Outer(grad, at_least_single(attended.detach()), shape),
        "out_proj.bias": Dense(grad.sum(1)),
    }


def _additive_mask(
    attention: Tensor | None, padding: Tensor | None, heads: int, samples: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks of the layer as one to add to the scores, broadcastable to `(samples, heads, T, S)`."""
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
