"""Per-sample gradients of common layers from their input and the gradient of their output: one rule per layer type.

A rule applies to its exact type only: a subclass, a parametrized layer or one with the old `weight_norm` may use its
parameters in any way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_probes.functional.layer_capture import Call, Layout, samples_first
from lightning_probes.functional.per_sample.attention_rule import attention_rule
from lightning_probes.functional.per_sample.recurrent_rule import recurrent_rule
from lightning_probes.functional.per_sample.sample_gradients import Contribution, Convolution, Dense, Outer
from lightning_probes.functional.wide import at_least_single

Rule: TypeAlias = Callable[[Any, Call, tuple[Tensor | None, ...], Layout, int], dict[str, Contribution]]
_InputRule: TypeAlias = Callable[[Any, Tensor, Tensor, Layout, int], dict[str, Contribution]]


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of `layer`'s type, or None.

    A rule takes the layer, a call of it, the gradients of the outputs of this call, the layout of the samples in them,
    and the number of samples. It returns a `Contribution` for each parameter, by its name in the layer.

    Example:
        >>> rule_of(nn.Linear(3, 2)) is None, rule_of(nn.Bilinear(3, 3, 2)) is None
        (False, True)
    """
    kind = type(layer)
    if kind is nn.MultiheadAttention:
        return lambda layer, call, grads, layout, samples: attention_rule(layer, call, grads, samples)
    if isinstance(layer, nn.RNNBase):
        plain = kind in (nn.RNN, nn.LSTM, nn.GRU) and {*layer._parameters} == {*layer._flat_weights_names}
        if layer.proj_size or not plain:
            return None
        return lambda layer, call, grads, layout, samples: recurrent_rule(layer, call, grads, samples)
    if not set(layer._parameters) <= {"weight", "bias"}:
        return None  # the old weight_norm, spectral_norm or pruning
    if isinstance(layer, nn.Embedding) and (layer.max_norm or layer.scale_grad_by_freq or layer.sparse):
        return None  # they change the weight or its gradient
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        return _on_input(_transposed_linear)  # known by name: transformers is not imported here
    return _on_input(_RULES[kind]) if kind in _RULES else None


def _on_input(rule: _InputRule) -> Rule:
    """Rule for a layer with one input and one output, both converted to at least single precision."""

    def apply(
        layer: Any, call: Call, grads: tuple[Tensor | None, ...], layout: Layout, samples: int
    ) -> dict[str, Contribution]:
        inputs = call.args[0] if call.args else next(iter(call.kwargs.values()))
        assert grads[0] is not None
        return rule(layer, at_least_single(inputs), at_least_single(grads[0]), layout, samples)

    return apply


def _linear(layer: nn.Linear, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    grads = _grads_first(grad, layout, samples).reshape(samples, -1, grad.shape[-1])
    inputs = _inputs_first(x, layout, samples).reshape(samples, -1, x.shape[-1])
    return {"weight": Outer(grads, inputs, layer.weight.shape), "bias": Dense(grads.sum(1))}


def _transposed_linear(layer: Any, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    grads = _grads_first(grad, layout, samples).reshape(samples, -1, grad.shape[-1])
    inputs = _inputs_first(x, layout, samples).reshape(samples, -1, x.shape[-1])
    return {"weight": Outer(inputs, grads, layer.weight.shape), "bias": Dense(grads.sum(1))}


def _embedding(layer: nn.Embedding, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    grads = _grads_first(grad, layout, samples).reshape(samples, -1, grad.shape[-1])
    rows = _inputs_first(x, layout, samples).reshape(samples, -1)
    if layer.padding_idx is not None:
        grads = grads.masked_fill((rows == layer.padding_idx).unsqueeze(2), 0)
    return {"weight": Outer(rows, grads, layer.weight.shape)}


def _convolution(layer: Any, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    _refuse_other_than_first(layer, layout)
    padding = layer.padding
    if padding == "valid":
        padding = (0,) * len(layer.kernel_size)
    if padding == "same" or layer.padding_mode != "zeros":
        if padding == "same":
            totals = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(size, size) for size in padding]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, [size for pair in reversed(sides) for size in pair], mode=mode)
        padding = (0,) * len(layer.kernel_size)
    images, grads = (samples_first(t, "folded", samples) for t in (x, grad))
    convolution = Convolution(images, grads, layer.weight.shape, layer.stride, padding, layer.dilation, layer.groups)
    bias = {} if layer.bias is None else {"bias": Dense(grads.flatten(3).sum((1, 3)))}
    return {"weight": convolution, **bias}


def _layer_norm(layer: nn.LayerNorm, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    normalized = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return _affine(layer, normalized, grad, layout, samples)


def _rms_norm(layer: nn.RMSNorm, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    return _affine(layer, F.rms_norm(x, layer.normalized_shape, eps=layer.eps), grad, layout, samples)


def _group_norm(layer: nn.GroupNorm, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    _refuse_other_than_first(layer, layout)
    normalized = F.group_norm(x, layer.num_groups, eps=layer.eps)
    grad = grad.reshape(*grad.shape[:2], -1)
    return _per_channel(torch.linalg.vecdot(normalized.reshape(grad.shape), grad), grad.sum(2), samples)


def _batch_norm(layer: Any, x: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    _refuse_other_than_first(layer, layout)
    rows, channels = x.shape[:2]
    # As one row of rows * channels channels: the fused backward pass then sums over space alone.
    x, grad = (t.reshape(1, rows * channels, -1) for t in (x, grad))
    mean, variance = (t.to(x.dtype).repeat(rows) for t in (layer.running_mean, layer.running_var))
    # CUDA uses the saved statistics, which a forward pass would have stored; the CPU uses the running ones.
    saved = (mean, (variance + layer.eps).rsqrt())
    sums = torch.ops.aten.native_batch_norm_backward(
        grad, x, None, mean, variance, *saved, False, layer.eps, (False, True, True)
    )
    return _per_channel(sums[1].view(rows, channels), sums[2].view(rows, channels), samples)


def _affine(layer: Any, normalized: Tensor, grad: Tensor, layout: Layout, samples: int) -> dict[str, Contribution]:
    shape = layer.normalized_shape
    products = _grads_first(normalized * grad, layout, samples).reshape(samples, -1, *shape).sum(1)
    return {
        "weight": Dense(products),
        "bias": Dense(_grads_first(grad, layout, samples).reshape(samples, -1, *shape).sum(1)),
    }


def _per_channel(weight: Tensor, bias: Tensor, samples: int) -> dict[str, Contribution]:
    """Contributions from the gradients of each row, shape `(rows, channels)`: sums over the rows of a sample."""
    return {
        "weight": Dense(samples_first(weight, "folded", samples).sum(1)),
        "bias": Dense(samples_first(bias, "folded", samples).sum(1)),
    }


def _refuse_other_than_first(layer: nn.Module, layout: Layout) -> None:
    if layout not in ("first", "folded"):
        raise ValueError(f"{type(layer).__name__} needs its samples in dim 0, but their layout is {layout!r}")


def _grads_first(grad: Tensor, layout: Layout, samples: int) -> Tensor:
    return samples_first(grad, "first" if layout in ("expanded", "prepended") else layout, samples)


def _inputs_first(x: Tensor, layout: Layout, samples: int) -> Tensor:
    if layout in ("expanded", "prepended"):  # all samples share the input of such a layer
        return x.expand(samples, *(x.shape[1:] if layout == "expanded" else x.shape))
    return samples_first(x, layout, samples)


_RULES: dict[type[nn.Module], _InputRule] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}
