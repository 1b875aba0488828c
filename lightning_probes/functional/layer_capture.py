"""What the layers of a model saw and gave in one forward pass: inputs, and where the gradient of each output arrives.

Differentiating with respect to outputs alone never forms a weight gradient, though the parameters do require grad: the
autograd engine computes only what leads to the requested edges. An edge is taken inside the hook, so that an in-place
operation on the output afterwards (`ReLU(inplace=True)`) does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_flatten

Layout: TypeAlias = Literal["first", "second", "folded", "expanded", "prepended"]
"""Where the samples are in a layer's tensors.

`first`: in dim 0. `second`: in dim 1. `folded`: in dim 0, several rows a sample, one sample after the other (tokens,
windows, frames). The last two are layers that never see the samples, such as a position embedding: their output is
repeated for each sample, so that the gradient of each arrives apart: `expanded` in a dim 0 of size 1, `prepended` in a
new dim 0.
"""


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Args:
        name: The layer's name.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Position of each differentiable output among all tensors and other leaves that the layer returned.
        edges: The gradient edge of each of them.
        shapes: The shape of each of them.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    edges: tuple[GradientEdge, ...]
    shapes: tuple[torch.Size, ...]


@contextmanager
def captured_calls(module: nn.Module, layouts: Mapping[str, Layout | None]) -> Iterator[list[Call]]:
    """Record each call of the layers named in `layouts` that takes part in the autograd graph, while the context lasts.

    Args:
        module: Their common ancestor. It gets hooks for the time of the context, nothing else.
        layouts: Layer name to layout; None where it is not known yet. `expanded` and `prepended` layers have their
            output repeated over samples. How many there are is read off the first layer called before whose layout is
            `first` or `second`; where there is none, the output is left alone.

    Yields:
        The list that calls are appended to, in order.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> with captured_calls(layer, {"": "first"}) as calls:
        ...     _ = layer(torch.zeros(5, 3))
        >>> [(call.name, call.shapes) for call in calls]
        [('', (torch.Size([5, 2]),))]
    """
    calls: list[Call] = []
    samples: list[int] = []

    def hook_of(name: str, layout: Layout | None) -> Callable[..., Any]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            repeated = None
            if samples and isinstance(output, Tensor) and layout in ("expanded", "prepended"):
                shape = output.shape[1:] if layout == "expanded" else output.shape
                repeated = output = output.expand(samples[0], *shape)
            leaves = tree_flatten(output)[0]
            outputs = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad)
            if outputs:  # otherwise called without grad: no gradient arrives here
                shapes = tuple(leaves[i].shape for i in outputs)
                edges = tuple(get_gradient_edge(leaves[i]) for i in outputs)
                calls.append(Call(name, args, kwargs, outputs, edges, shapes))
                if not samples and layout in ("first", "second"):
                    samples.append(shapes[0][0 if layout == "first" else 1])
            return repeated

        return record

    handles = []
    try:
        for name, layout in layouts.items():
            layer = module.get_submodule(name)
            handles.append(layer.register_forward_hook(hook_of(name, layout), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def output_gradients(logits: Tensor, calls: Sequence[Call], cotangent: Tensor) -> list[tuple[Tensor | None, ...]]:
    """Gradient of `(logits * cotangent).sum()` with respect to the outputs of each call, None where none arrives.

    Costs the part of one backward pass that leads to the layers; the graph is kept.
    """
    edges = [edge for call in calls for edge in call.edges]
    if not edges:
        return []
    grads = iter(torch.autograd.grad(logits, edges, cotangent, retain_graph=True, allow_unused=True))
    return [tuple(next(grads) for _ in call.edges) for call in calls]


def samples_first(tensor: Tensor, layout: Layout, samples: int) -> Tensor:
    """Bring the samples to dim 0; `folded` rows become dim 1.

    Raises:
        ValueError: If the tensor has no dim of that size.
    """
    dim = 1 if layout == "second" else 0
    size = tensor.shape[dim] if tensor.ndim > dim else 0
    if layout == "folded":
        if size == 0 or size % samples:
            raise ValueError(f"expected a multiple of {samples} samples in dim 0, found shape {tuple(tensor.shape)}")
        return tensor.reshape(samples, -1, *tensor.shape[1:])
    if size != samples:
        raise ValueError(f"expected {samples} samples in dim {dim}, found shape {tuple(tensor.shape)}")
    return tensor.movedim(dim, 0)
