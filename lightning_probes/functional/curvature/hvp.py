"""Gradient and Hessian-vector products of a loss that is a function of a parameter dict.

The Hessian H is never formed: H v is the derivative of the inner product of the gradient with v. It costs a backward
pass through the graph of a backward pass (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
Nothing here changes `.grad`, hooks or `requires_grad` of the input tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_probes.functional.parameter_vector import to_dict, to_vector

Loss: TypeAlias = Callable[[Mapping[str, Tensor]], Tensor]


def gradient(loss: Loss, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Value and gradient of a loss.

    Args:
        loss: Maps a parameter dict to a tensor with one element.
        params: The point at which to differentiate; detached first, so the caller's tensors do not change.

    Returns:
        The loss, shape `()`, and its gradient as a vector, laid out as `to_vector(params)`. A parameter that the loss
        does not use has gradient zero. Cost: one forward and one backward pass.

    Raises:
        ValueError: If the loss is not a tensor with one element.

    Example:
        >>> gradient(lambda p: (p["w"] ** 2).sum(), {"w": torch.tensor([1.0, 2.0])})
        (tensor(5.), tensor([2., 4.]))
    """
    value, gradients, leaves = _first_order(loss, params, create_graph=False)
    return value.detach(), to_vector(dict(zip(leaves, gradients, strict=True)))


def hvp(loss: Loss, params: Mapping[str, Tensor], vector: Tensor) -> Tensor:
    """Hessian-vector product of a loss.

    Args:
        loss: Maps a parameter dict to a tensor with one element; twice differentiable where it is evaluated (see
            `double_backward_kernels` for attention and recurrent layers).
        params: The point at which to differentiate; detached first, so the caller's tensors do not change.
        vector: Direction, laid out as `to_vector(params)`.

    Returns:
        H v, a vector like `vector`; zeros where the loss is constant or linear in the parameters. Cost: one forward
        pass, one backward pass that builds a graph, and one backward pass through both.

    Raises:
        ValueError: If the loss is not a tensor with one element, or `vector` does not fit `params`.

    Example:
        >>> hvp(lambda p: (p["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0])}, torch.tensor([1.0, 1.0]))
        tensor([ 6., 12.])
    """
    _, gradients, leaves = _first_order(loss, params, create_graph=True)
    return _second_order(gradients, leaves, vector, retain_graph=False)


@dataclass(frozen=True)
class Linearization:
    """A loss linearized at one point. Calling it with v returns H v, computed from the stored graph of the gradient.

    Attributes:
        value: The loss, shape `()`.
        gradients: Its gradient for each parameter, with its graph.
        leaves: The parameters at which they were taken.
    """

    value: Tensor
    gradients: tuple[Tensor, ...] = field(repr=False)
    leaves: Mapping[str, Tensor] = field(repr=False)

    @property
    def gradient(self) -> Tensor:
        """The gradient without its graph, laid out as `to_vector(params)`."""
        return to_vector(dict(zip(self.leaves, self.gradients, strict=True))).detach()

    def restricted(self, names: Collection[str]) -> Linearization:
        """The same for some of the parameters: calling it with v returns H_aa v, with the diagonal block of these.

        A product then uses only the part of the graph between these parameters and their gradients.
        """
        leaves = {name: leaf for name, leaf in self.leaves.items() if name in names}
        slopes = dict(zip(self.leaves, self.gradients, strict=True))
        return Linearization(self.value, tuple(slopes[name] for name in leaves), leaves)

    def __call__(self, vector: Tensor) -> Tensor:
        """The product H v."""
        return _second_order(self.gradients, self.leaves, vector, retain_graph=True)


def linearize(loss: Loss, params: Mapping[str, Tensor]) -> Linearization:
    """The map v -> H v with the graph of the gradient kept, for several products on the same batch.

    Args:
        loss: As for `hvp`; evaluated once, here.
        params: As for `hvp`.

    Returns:
        A function equal to `lambda vector: hvp(loss, params, vector)` that costs only the last backward pass of it. It
        also holds the loss, the gradient and the activations of the graph; deleting it frees the memory.

    Raises:
        ValueError: If the loss is not a tensor with one element.

    Example:
        >>> matvec = linearize(lambda p: (p["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0])})
        >>> matvec(torch.tensor([1.0, 0.0])), matvec(torch.tensor([0.0, 1.0]))
        (tensor([6., 0.]), tensor([ 0., 12.]))
    """
    value, gradients, leaves = _first_order(loss, params, create_graph=True)
    return Linearization(value.detach(), gradients, leaves)


@contextmanager
def double_backward_kernels() -> Iterator[None]:
    """Use kernels that can be differentiated twice, in full float32, inside the block.

    Three process-wide settings change, and are restored afterwards, also when the block raises. Scaled-dot-product
    attention uses its math backend, because the fused backends have no second derivative. cuDNN is off, because its
    recurrent kernels have none and its convolutions use TF32 by default. Float32 matrix products use neither TF32 nor
    bfloat16, even if `torch.set_float32_matmul_precision` allows it.

    The forward pass picks the kernels, so `hvp` and the call of `linearize` must be inside the block. Tensors that
    are not float32 are left alone: turn autocast off separately.

    Example:
        >>> q = torch.ones(1, 1, 2, 4)
        >>> def loss(params):
        ...     return torch.nn.functional.scaled_dot_product_attention(params["w"] * q, q, q).sum()
        >>> with double_backward_kernels():
        ...     hvp(loss, {"w": torch.ones(1)}, torch.ones(1))
        tensor([0.])
    """
    cudnn = torch.backends.cudnn.enabled
    try:
        # Not torch.backends.cudnn.flags(): it would also reset `benchmark` and `deterministic` inside the block.
        torch.backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH), _full_float32_products():
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn


@contextmanager
def _full_float32_products() -> Iterator[None]:
    # Torch keeps this twice: a global setting and, from 2.9 on, a setting for each backend. If the user has set one of
    # a backend, reading the global one raises. If not, setting only that of a backend would make other readers raise.
    candidates = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    backends: list[Any] = [backend for backend in candidates if hasattr(backend, "fp32_precision")]
    precisions = [backend.fp32_precision for backend in backends]
    try:
        allowed = torch.get_float32_matmul_precision()
    except RuntimeError:
        allowed = None
    try:
        if allowed is None:
            for backend in backends:
                backend.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if allowed is not None:
            torch.set_float32_matmul_precision(allowed)
        for backend, precision in zip(backends, precisions, strict=True):
            backend.fp32_precision = precision


def _first_order(
    loss: Loss, params: Mapping[str, Tensor], create_graph: bool
) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
    """Loss, its gradients, and the detached leaves they were taken at."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    with torch.enable_grad():
        value = loss(leaves)
        for leaf in leaves.values():  # a loss may freeze parameters; those it has not used have no gradient then
            leaf.requires_grad_()
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the loss must be a tensor with one element, got {found}; reduce it, e.g. by mean()")
        value = value.reshape(())
        if not value.requires_grad:
            return value, tuple(torch.zeros_like(leaf) for leaf in leaves.values()), leaves
        gradients = torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph, materialize_grads=True)
        for name, slope in zip(leaves, gradients, strict=True):
            if slope.layout != torch.strided:
                raise ValueError(
                    f"the gradient of parameter {name!r} is sparse, but curvature needs dense gradients: build its "
                    "layer with sparse=False, or freeze it"
                )
    return value, gradients, leaves


def _second_order(
    gradients: tuple[Tensor, ...], leaves: Mapping[str, Tensor], vector: Tensor, retain_graph: bool
) -> Tensor:
    """Derivative of <gradients, vector>; a gradient without a graph is constant and adds nothing."""
    tangents = to_dict(vector, like=leaves).values()
    varying = [(grad, tangent) for grad, tangent in zip(gradients, tangents, strict=True) if grad.requires_grad]
    if not varying:
        return torch.zeros_like(vector)
    outputs, weights = zip(*varying, strict=True)
    products = torch.autograd.grad(
        outputs, list(leaves.values()), weights, retain_graph=retain_graph, materialize_grads=True
    )
    return to_vector(dict(zip(leaves, products, strict=True))).to(vector.dtype)
