"""Norms of activations along the depth of a pass, and of the loss's gradients with respect to them, for each sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_probes.functional.flow.rows import row_norms, rows
from lightning_probes.functional.plain import plain
from lightning_probes.functional.tracing.additions import Addition, sample_dim


class DepthGradients:
    """Places along the depth of one pass with gradients on.

    It takes the gradient edge of a tensor when it is made, so that a later operation in place on the tensor
    (`ReLU(inplace=True)`) has no effect on its gradient.

    Args:
        samples: Number of samples in the pass.

    Attributes:
        norms: By name of the place: the norm of each sample's activation.

    Example:
        >>> places = DepthGradients(samples=2)
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> y = 2 * x
        >>> places.add("y", y)
        >>> places.gradients((y**2).sum())["y"]
        tensor([6.9282, 6.9282], dtype=torch.float64)
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._edges: dict[str, tuple[GradientEdge, int]] = {}
        self.norms: dict[str, Tensor] = {}

    def operands(self, position: int, addition: Addition, skip: Tensor, branch: Tensor) -> None:
        """Nothing."""

    def result(self, position: int, addition: Addition, result: Tensor) -> None:
        """The result of a residual addition is a place; see `follow_additions`."""
        self.add(addition.name, result)

    def add(self, name: str, tensor: Tensor) -> None:
        """A place, if the tensor has samples and gradients can reach it."""
        dim = sample_dim(tensor, self._samples)
        if dim is not None and tensor.requires_grad:
            self._edges[name] = get_gradient_edge(tensor), dim
            self.norms[name] = row_norms(rows(plain(tensor).detach(), dim))

    def gradients(self, total: Tensor) -> dict[str, Tensor]:
        """By name of the place: the norm of each sample's gradient; places that the sum does not depend on are missing.

        Args:
            total: The sum of the samples' losses. It must depend on each sample's activations by its own loss alone.
        """
        names, edges = [*self._edges], [edge for edge, _ in self._edges.values()]
        if not edges or not total.requires_grad:
            return {}
        found = torch.autograd.grad(total, edges, allow_unused=True)
        return {
            name: row_norms(rows(gradient, self._edges[name][1]))
            for name, gradient in zip(names, found, strict=True)
            if gradient is not None
        }
