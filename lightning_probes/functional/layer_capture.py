"""Capture the inputs of layers in a forward pass, and the gradients of their outputs in the backward pass.

Differentiating with respect to outputs never forms a weight gradient, although the parameters require grad: autograd
computes only the gradients on the way to the requested edges. Edges and gradient hooks are taken inside the forward
hook, so that a later in-place operation on the output (`ReLU(inplace=True)`) has no effect on them. Each gradient is
passed on as soon as it arrives: it is processed while it is in cache, and only one is in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_flatten

Layout: TypeAlias = Literal["first", "second", "folded", "expanded", "prepended"]
"""Where the samples are in a layer's tensors.

`first`: in dim 0. `second`: in dim 1. `folded`: in dim 0 with several rows per sample, one sample after the other
(tokens, windows, frames). The other two are for layers without a sample dim, such as a position embedding. Their output
is repeated for each sample, so that each sample's gradient arrives separately: `expanded` expands a dim 0 of size 1,
`prepended` adds a new dim 0.
"""


Receive: TypeAlias = Callable[[int, int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Args:
        name: The layer's name.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Position of each differentiable output among the leaves of the layer's return value.
        edges: The gradient edge of each of these outputs, followed by inner edges.
        shapes: The shape of each output.
        is_source: Whether the arguments are outside the autograd graph.
        position: Number of earlier captured calls of the same layer.
        parameters: Names of the layer's parameters, if these, repeated for each sample, are captured instead of its
            outputs.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    edges: tuple[GradientEdge, ...]
    shapes: tuple[torch.Size, ...]
    is_source: bool
    position: int
    parameters: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[str, bool]:
        """The layer's name, and whether its parameters are captured."""
        return self.name, bool(self.parameters)


@dataclass(frozen=True, eq=False)
class Capture:
    """The calls of one forward pass, in order, with access to their gradients."""

    calls: list[Call] = field(default_factory=list)
    _numbers: Counter[tuple[str, bool]] = field(default_factory=Counter)
    # Hooks on the graph pass gradients to these functions, which are set only during a backward pass. The graph refers
    # to this list, not to the calls: the calls refer to the graph, and such a cycle would never be freed.
    _receivers: list[Receive] = field(default_factory=list)

    def backward(
        self, logits: Tensor, cotangent: Tensor, visit: Callable[[Call, tuple[Tensor | None, ...]], None]
    ) -> None:
        """Visit each call with the gradients of its outputs for `(logits * cotangent).sum()`.

        Costs the part of one backward pass that leads to the layers; the graph is kept. Calls are visited in the order
        in which their gradients arrive, from the logits down. Calls without gradients are skipped.
        """
        visited: set[int] = set()
        collected: dict[int, dict[int, Tensor]] = {}

        def receive(index: int, output: int, grad: Tensor) -> None:
            if len(self.calls[index].edges) > 1:
                collected.setdefault(index, {})[output] = grad
            elif index not in visited:
                visited.add(index)
                visit(self.calls[index], (grad,))

        self._receivers.append(receive)
        try:
            # The way to the sources passes all other calls, except those behind a parameter used outside any layer.
            for only_sources in (True, False):
                wanted = [
                    (index, output)
                    for index, call in enumerate(self.calls)
                    for output in range(len(call.edges))
                    if output >= len(call.shapes) or call.is_source or not only_sources
                    if index not in visited and output not in collected.get(index, ())
                ]
                if wanted:
                    edges = [self.calls[index].edges[output] for index, output in wanted]
                    grads = torch.autograd.grad(logits, edges, cotangent, retain_graph=True, allow_unused=True)
                    for (index, output), grad in zip(wanted, grads, strict=True):
                        if output >= len(self.calls[index].shapes) and grad is not None:  # inner edges have no hook
                            receive(index, output, grad)
        finally:
            self._receivers.clear()
        for index, found in collected.items():
            call = self.calls[index]
            visit(call, tuple(found.get(output) for output in range(len(call.edges))))

    def add(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        parameters: tuple[str, ...] = (),
        inner: tuple[GradientEdge, ...] = (),
    ) -> None:
        """Record a call that returned `output`, if gradients can reach it; `inner` has additional edges."""
        leaves = _leaves(output)
        outputs = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad)
        if not outputs:
            return
        for output_number, i in enumerate(outputs):
            if not leaves[i].is_leaf:  # a leaf is a parameter: the hook would stay, and its gradient sums over samples
                leaves[i].register_hook(_hand_over(self._receivers, len(self.calls), output_number))
        edges = tuple(get_gradient_edge(leaves[i]) for i in outputs)
        shapes = tuple(leaves[i].shape for i in outputs)
        inputs = (leaf for part in (*args, *kwargs.values()) for leaf in _leaves(part))
        is_source = not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in inputs)
        position = self._numbers[name, bool(parameters)]
        self._numbers[name, bool(parameters)] += 1
        self.calls.append(Call(name, args, kwargs, outputs, edges + inner, shapes, is_source, position, parameters))


def _leaves(value: Any) -> list[Any]:
    return [value] if isinstance(value, Tensor) else tree_flatten(value)[0]  # the shortcut saves most of the time


def _hand_over(receivers: list[Receive], index: int, output: int) -> Callable[[Tensor], None]:
    def hook(grad: Tensor) -> None:
        for receive in receivers:
            receive(index, output, grad)

    return hook


@contextmanager
def captured_calls(
    module: nn.Module,
    layouts: Mapping[str, Layout | None],
    inner_edges: Callable[[nn.Module, Any], tuple[GradientEdge, ...]] = lambda layer, output: (),
) -> Iterator[Capture]:
    """Capture the calls of the layers named in `layouts` inside the context.

    Args:
        module: The module that contains the layers. It has hooks inside the context; nothing else changes.
        layouts: Maps the layer's name to its layout; None if not known yet. The output of `expanded` and `prepended`
            layers is repeated over samples. Their number is that of the first called layer with layout `first` or
            `second`; if no such layer was called before, the output is not changed.
        inner_edges: Maps a layer and its output to edges inside the layer whose gradients are captured too.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> with captured_calls(layer, {"": "first"}) as capture:
        ...     logits = layer(torch.zeros(5, 3))
        >>> capture.backward(logits, torch.ones(5, 2), lambda call, grads: print(call.shapes, grads[0].shape))
        (torch.Size([5, 2]),) torch.Size([5, 2])
    """
    capture = Capture()
    samples: list[int] = []

    def hook_of(name: str, layout: Layout | None) -> Callable[..., Any]:
        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if layout in ("expanded", "prepended") and samples and isinstance(output, Tensor):
                shape = output.shape[1:] if layout == "expanded" else output.shape
                output = output.expand(samples[0], *shape)
            capture.add(name, args, kwargs, output, inner=inner_edges(layer, output))
            if layout in ("first", "second") and not samples and isinstance(output, Tensor):
                samples.append(output.shape[0 if layout == "first" else 1])
            return output

        return record

    handles = []
    try:
        for name, layout in layouts.items():
            layer = module.get_submodule(name)
            handles.append(layer.register_forward_hook(hook_of(name, layout), with_kwargs=True))
        yield capture
    finally:
        for handle in handles:
            handle.remove()


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
