"""Per-sample gradients of one parameter, in a form that makes their norms cheap.

A layer that applies a weight at T positions of a sample has the gradient sum_t l_t r_t^T of shape (p, d). Its squared
norm can be computed in two ways. Forming the gradient costs T p d multiply-adds per sample. Two Gram matrices over
positions avoid that: sum_ts <l_t, l_s> <r_t, r_s> costs T^2 (p + d). This is the "ghost norm" (Goodfellow 2015,
arXiv:1510.01799), chosen layer by layer (Bu et al. 2022, arXiv:2205.10683). Here the count of multiply-adds decides.
Both ways process slices of samples, so that temporaries take a few megabytes instead of samples times parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, product
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_TOUCH = 20
"""Cost of writing and reading one element of a temporary, in multiply-adds; measured on CPU."""


class Contribution(Protocol):
    """What one use of a parameter adds to its per-sample gradients."""

    @property
    def grads(self) -> Tensor:
        """Any tensor with the samples in dim 0: gives their number and the device."""
        ...

    def squared_norm(self) -> Tensor:
        """Squared norm of each sample's gradient, shape `(samples,)`."""
        ...

    def dense(self, samples: slice) -> Tensor:
        """The gradients of some samples, shape `(len(samples), *parameter.shape)`."""
        ...


@dataclass(frozen=True)
class Dense:
    """Per-sample gradients stored directly, shape `(samples, *parameter.shape)`."""

    grads: Tensor

    def squared_norm(self) -> Tensor:  # noqa: D102
        return _square_sum(self.grads)

    def dense(self, samples: slice) -> Tensor:  # noqa: D102
        return self.grads[samples]


@dataclass(frozen=True)
class Outer:
    """Per-sample gradients sum_t left_t right_t^T of a matrix.

    Args:
        left: Shape `(samples, T, p)`; or integers `(samples, T)`, the row indices of one-hot vectors (embeddings).
        grads: The right factor, shape `(samples, T, d)`.
        shape: Shape of the parameter; `p` rows and `d` columns after flattening all dims but the first.
    """

    left: Tensor
    grads: Tensor
    shape: torch.Size

    def squared_norm(self) -> Tensor:  # noqa: D102
        if self.grads.shape[1] == 1:  # one position: |l r^T| = |l| |r|
            norms = _square_sum(self.grads)
            return norms if _is_rows(self.left) else norms * _square_sum(self.left)
        if gram_is_cheaper([self]):
            return self.inner(self)
        return _sliced([self], prod(self.shape), lambda part: _square_sum(self.dense(part)))

    def inner(self, other: Outer) -> Tensor:
        """Inner product of each sample's gradient with `other`'s, shape `(samples,)`, through Gram matrices."""

        def products(part: slice) -> Tensor:
            gram = torch.bmm(self.grads[part], other.grads[part].transpose(1, 2))
            return gram.mul_(_pairing(self.left[part], other.left[part])).sum((1, 2))

        return _sliced([self], self.grads.shape[1] * other.grads.shape[1], products)

    def dense(self, samples: slice) -> Tensor:  # noqa: D102
        left, right = self.left[samples], self.grads[samples]
        if not _is_rows(left):
            return torch.bmm(left.transpose(1, 2), right).reshape(-1, *self.shape)
        matrix = right.new_zeros(len(right) * self.shape[0], right.shape[2])
        offsets = torch.arange(len(right), device=right.device).unsqueeze(1) * self.shape[0]
        return matrix.index_add_(0, (left + offsets).flatten(), right.flatten(0, 1)).view(-1, *self.shape)


@dataclass(frozen=True)
class Convolution:
    """Per-sample gradients of a convolution's weight.

    Args:
        inputs: Shape `(samples, k, C_in, *spatial)`, k images per sample.
        grads: Gradient of the output, shape `(samples, k, C_out, *spatial_out)`.
        shape: Shape of the weight, `(C_out, C_in / groups, *kernel)`.
        stride: The layer's stride, per spatial dim.
        padding: Zeros on both sides, per spatial dim. Other padding is already in `inputs`.
        dilation: The layer's dilation, per spatial dim.
        groups: The layer's groups.
    """

    inputs: Tensor
    grads: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def squared_norm(self) -> Tensor:  # noqa: D102
        kernel, channels_in = self.shape[2:], self.inputs.shape[2]
        pixels = prod(size + 2 * pad for size, pad in zip(self.inputs.shape[3:], self.padding, strict=True))
        positions = prod(self.grads.shape[3:])
        shifts = prod(kernel) * self.groups
        gram_cost = pixels**2 * channels_in + positions**2 * (self.shape[0] + _TOUCH * shifts)
        if self.inputs.shape[1] == 1 and gram_cost < prod(self.shape) * (positions + _TOUCH):
            return _sliced([self], pixels**2 * self.groups, self._norms_by_gram)
        return _sliced([self], prod(self.shape), lambda part: _square_sum(self.dense(part)))

    def dense(self, samples: slice) -> Tensor:  # noqa: D102
        # Use one group per sample: the weight gradient of this grouped convolution has each sample's gradient.
        inputs, grads = self.inputs[samples], self.grads[samples]
        count = len(grads)
        merged = [t.transpose(0, 1).flatten(1, 2) for t in (grads, inputs)]
        weight = grads.new_empty(()).expand(count * self.shape[0], *self.shape[1:])  # only its shape is used
        zeros = [0] * len(self.stride)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            *merged,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            zeros,
            count * self.groups,
            (False, True, False),
        )[1]
        return gradient.view(count, *self.shape)

    def _norms_by_gram(self, samples: slice) -> Tensor:
        # The Gram matrix of patches is a sum of shifted Gram matrices of pixels, one shift for each kernel position.
        # So patches are never formed, and the sum over channels is done once instead of once per kernel position.
        inputs, grads = self.inputs[samples, 0], self.grads[samples, 0]
        inputs = F.pad(inputs, [pad for size in reversed(self.padding) for pad in (size, size)])
        pixels = inputs.reshape(len(grads) * self.groups, -1, prod(inputs.shape[2:]))
        outputs = grads.reshape(len(grads) * self.groups, -1, prod(grads.shape[2:]))
        pixel_gram = torch.bmm(pixels.transpose(1, 2), pixels).view(-1, *inputs.shape[2:], *inputs.shape[2:])
        patch_gram = torch.zeros((), dtype=grads.dtype, device=grads.device)
        for position in product(*(range(size) for size in self.shape[2:])):
            window = tuple(
                slice(at * dilation, at * dilation + stride * (size - 1) + 1, stride)
                for at, dilation, stride, size in zip(
                    position, self.dilation, self.stride, grads.shape[2:], strict=True
                )
            )
            shifted = pixel_gram[(slice(None), *window, *window)]
            patch_gram = patch_gram.add_(shifted) if patch_gram.ndim else shifted.clone()
        output_gram = torch.bmm(outputs.transpose(1, 2), outputs)
        return output_gram.mul_(patch_gram.reshape_as(output_gram)).view(len(grads), -1).sum(1)


@dataclass(frozen=True)
class Stacked:
    """Per-sample gradients of a parameter made of several matrices, concatenated along its rows."""

    parts: Sequence[Contribution]

    @property
    def grads(self) -> Tensor:  # noqa: D102
        return self.parts[0].grads

    def squared_norm(self) -> Tensor:  # noqa: D102
        return torch.stack([part.squared_norm() for part in self.parts]).sum(0)

    def dense(self, samples: slice) -> Tensor:  # noqa: D102
        return torch.cat([part.dense(samples) for part in self.parts], dim=1)


def squared_norm(uses: Sequence[Contribution]) -> Tensor:
    """Squared norm of the sum of all uses of a parameter, with cross terms (a module called twice, a tied weight).

    Args:
        uses: At least one.

    Returns:
        Shape `(samples,)`.
    """
    if len(uses) == 1:
        return uses[0].squared_norm()
    factors = [use for use in uses if isinstance(use, Outer)]
    if len(factors) == len(uses) and gram_is_cheaper(factors):
        squares = torch.stack([factor.inner(factor) for factor in factors]).sum(0)
        crosses = torch.stack([first.inner(second) for first, second in combinations(factors, 2)]).sum(0)
        return squares + 2 * crosses
    size = uses[0].dense(slice(0, 1)).numel()
    return _sliced(uses, size, lambda part: _square_sum(torch.stack([use.dense(part) for use in uses]).sum(0)))


def gram_is_cheaper(factors: Sequence[Outer]) -> bool:
    """Whether Gram matrices take fewer multiply-adds than forming the gradient, the sum of `factors`."""
    rows, columns = factors[0].shape[0], factors[0].grads.shape[2]
    gram, formed = 0, prod(factors[0].shape) * _TOUCH
    for first, second in combinations_with_replacement(factors, 2):
        dense = not (_is_rows(first.left) or _is_rows(second.left))
        gram += first.grads.shape[1] * second.grads.shape[1] * (columns + _TOUCH + (rows if dense else 0))
    for factor in factors:
        formed += factor.grads.shape[1] * columns * (1 if _is_rows(factor.left) else rows)
    return gram < formed


def slices(samples: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Split `samples` so that a temporary of `elements` per sample stays small: in cache on CPU, 64 MiB elsewhere."""
    step = max(1, (2**18 if device.type == "cpu" else 2**24) // max(1, elements))
    return (slice(start, min(start + step, samples)) for start in range(0, samples, step))


def _sliced(uses: Sequence[Contribution], elements: int, norms: Callable[[slice], Tensor]) -> Tensor:
    grads = uses[0].grads
    parts = [norms(part) for part in slices(len(grads), elements, grads.device)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _is_rows(left: Tensor) -> bool:
    return not left.is_floating_point()


def _pairing(left: Tensor, other: Tensor) -> Tensor:
    """<left_t, other_s> for one-hot or dense factors, shape `(samples, T, S)`."""
    if _is_rows(left) and _is_rows(other):
        return left.unsqueeze(2) == other.unsqueeze(1)
    if _is_rows(left):
        index = left.unsqueeze(2).expand(-1, -1, other.shape[1])
        return other.transpose(1, 2).gather(1, index)
    if _is_rows(other):
        return _pairing(other, left).transpose(1, 2)
    return torch.bmm(left, other.transpose(1, 2))


def _square_sum(grads: Tensor) -> Tensor:
    flat = grads.flatten(1)
    squares: Tensor = torch.linalg.vecdot(flat, flat)
    return squares
