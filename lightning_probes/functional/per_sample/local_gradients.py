"""Per-sample gradients of any layer, by running and differentiating this layer again for each sample.

The layer runs once more on its inputs, one sample at a time, and its outputs are differentiated with respect to its
parameters. `torch.func.vmap` does this for all samples at once, if it supports the layer. The cost is about one more
forward and backward pass of the layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_probes.functional.layer_capture import Call, Layout
from lightning_probes.functional.per_sample.sample_gradients import slices

SampleDims: TypeAlias = tuple[int | None, ...]
"""The dim that holds the samples, for each leaf of a call's arguments; None if all samples share the leaf."""


def sample_dims(layer: nn.Module, call: Call, layout: Layout) -> SampleDims:
    """The dims that hold the samples in the arguments of a call.

    They are known for recurrent layers and `nn.MultiheadAttention`. For other layers, a tensor holds samples if it has
    the same size as the first output in the dim of the samples.
    """
    if type(layer) in _KNOWN_TYPES:
        named = [*zip(inspect.signature(layer.forward).parameters, call.args, strict=False), *call.kwargs.items()]
        return tuple(_argument_dim(layer, name, leaf) for name, value in named for leaf in tree_flatten(value)[0])
    dim = 1 if layout == "second" else 0
    rows = call.shapes[0][dim] if layout in ("first", "second", "folded") else -1
    return tuple(
        dim if isinstance(leaf, Tensor) and leaf.ndim > dim and leaf.shape[dim] == rows else None
        for leaf in tree_flatten((call.args, call.kwargs))[0]
    )


def local_gradients(
    layer: nn.Module,
    names: Sequence[str],
    call: Call,
    grads: Sequence[Tensor | None],
    layout: Layout,
    dims: SampleDims,
    samples: int,
    vectorize: bool,
) -> Iterator[dict[str, Tensor]]:
    """Per-sample gradients of a layer's parameters, in slices of samples to bound memory.

    Args:
        layer: The layer, in the state in which it was called.
        names: Its parameters, by their names in the layer.
        call: The call to repeat.
        grads: Gradient of each differentiable output of the call.
        layout: Layout of the samples in the outputs.
        dims: Dims of the samples in the arguments, see `sample_dims`.
        samples: Number of samples.
        vectorize: Use `torch.func.vmap` for all samples of a slice at once, instead of a Python loop.

    Yields:
        Parameter name to gradients, shape `(samples in the slice, *parameter.shape)`.
    """
    leaves, spec = tree_flatten((call.args, call.kwargs))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    if len(leaves) != len(dims):
        raise ValueError(f"called with {len(leaves)} arguments, but its method was chosen for {len(dims)}")
    parameters = {name: layer.get_parameter(name).detach() for name in names}
    used = [(at, grad) for at, grad in enumerate(grads) if grad is not None]
    grad_dims = [_output_dim(layer, call.outputs[at], layout) for at, _ in used]

    def outputs_of(values: dict[str, Tensor], sample: Sequence[Any]) -> tuple[Tensor, ...]:
        args, kwargs = tree_unflatten(sample, spec)
        outputs = tree_flatten(functional_call(layer, values, args, kwargs))[0]
        return tuple(outputs[call.outputs[at]] for at, _ in used)

    def one_sample(mapped: Sequence[Tensor], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
        remaining = iter(mapped)
        sample = [
            leaf if dim is None else next(remaining).movedim(0, dim) for leaf, dim in zip(leaves, dims, strict=True)
        ]
        cotangents = tuple(
            c if dim is None else c.movedim(0, dim) for c, dim in zip(cotangents, grad_dims, strict=True)
        )
        if vectorize:
            found_for: dict[str, Tensor] = torch.func.vjp(lambda p: outputs_of(p, sample), parameters)[1](cotangents)[0]
            return found_for
        with torch.enable_grad():
            values = {name: value.detach().requires_grad_() for name, value in parameters.items()}
            pairs = [(o, c) for o, c in zip(outputs_of(values, sample), cotangents, strict=True) if o.requires_grad]
        outputs, cotangents = zip(*pairs, strict=True) if pairs else ((), ())
        found = torch.autograd.grad(outputs, list(values.values()), cotangents, materialize_grads=True)
        return {name: grad.to_dense() for name, grad in zip(values, found, strict=True)}

    mapped = [_split(leaf, dim, samples) for leaf, dim in zip(leaves, dims, strict=True) if dim is not None]
    cotangents = [_split(grad, dim, samples) for (_, grad), dim in zip(used, grad_dims, strict=True)]
    elements = sum(value.numel() for value in parameters.values()) // 16
    with torch.no_grad(), attributes_kept(layer):
        for part in slices(samples, elements, cotangents[0].device):
            inputs, grads_of = [t[part] for t in mapped], [t[part] for t in cotangents]
            if vectorize:
                with sdpa_kernel(SDPBackend.MATH):  # fused kernels have no batching rule and would loop
                    gradients: dict[str, Tensor] = torch.func.vmap(one_sample)(inputs, grads_of)
                yield gradients
            else:
                count = len(grads_of[0])
                each = [one_sample([t[n] for t in inputs], [t[n] for t in grads_of]) for n in range(count)]
                yield {name: torch.stack([gradients[name] for gradients in each]) for name in parameters}


_KNOWN_TYPES = (nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention)


def _argument_dim(layer: Any, name: str, leaf: Any) -> int | None:
    if name in ("query", "key", "value", "input"):
        return 0 if layer.batch_first else 1
    if name == "hx":
        return 1
    if name == "key_padding_mask" and isinstance(leaf, Tensor):
        return 0
    return 0 if name == "attn_mask" and isinstance(leaf, Tensor) and leaf.ndim == 3 else None  # (samples * heads, T, S)


def _output_dim(layer: Any, position: int, layout: Layout) -> int | None:
    if type(layer) in _KNOWN_TYPES:
        if position == 0:
            return 0 if layer.batch_first else 1
        return 0 if isinstance(layer, nn.MultiheadAttention) else 1  # attention weights, or final states
    if layout == "prepended":
        return None
    return 1 if layout == "second" else 0


def _split(tensor: Tensor, dim: int | None, samples: int) -> Tensor:
    """Samples in dim 0; the rows of one sample (usually a single row) in dim 1."""
    if dim is None:
        return tensor
    rows = tensor.movedim(dim, 0)
    return rows.reshape(samples, len(rows) // samples, *rows.shape[1:])


@contextmanager
def attributes_kept(layer: nn.Module) -> Iterator[None]:
    """Restore the attributes of a module after a call: tensors of `vmap` must not outlive the call."""
    kept = [(module, dict(module.__dict__)) for module in layer.modules()]
    try:
        yield
    finally:
        for module, attributes in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
