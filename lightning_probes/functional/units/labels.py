"""Labels: which units the entries of a tensor belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Labels:
    """The units along the axes of a tensor.

    A factor is an array of nodes (see `Evidence`) that broadcasts to the tensor: its size is 1 along axes that it does
    not depend on. The weight of a linear layer has two factors, one for each axis. A factor depends on several axes
    where one axis of units was split, as into heads and features of a head.

    Attributes:
        shape: Of the tensor.
        factors: int64 on the CPU. An axis that none of them depends on is bare: its positions stay where they are.
        uniform: All entries are equal, as in a tensor of zeros: no position differs from another.
        is_state: The tensor holds entries of a tensor of the state, perhaps in another order.
    """

    shape: tuple[int, ...]
    factors: tuple[Tensor, ...] = ()
    uniform: bool = False
    is_state: bool = False

    def along(self, *axes: int) -> list[Tensor]:
        """The factors that depend on any of the axes."""
        return [factor for factor in self.factors if depends(factor, *axes)]

    def without(self, *axes: int) -> list[Tensor]:
        """The factors that depend on none of the axes."""
        return [factor for factor in self.factors if not depends(factor, *axes)]

    def bare(self, axis: int) -> bool:
        """Whether positions along the axis differ, but belong to no unit."""
        return not self.uniform and self.shape[axis] > 1 and not self.along(axis)

    def padded(self, ndim: int) -> Labels:
        """The same with axes of size 1 in front, as broadcasting adds them."""
        missing = (1,) * (ndim - len(self.shape))
        factors = tuple(factor.reshape(missing + factor.shape) for factor in self.factors)
        return Labels(missing + self.shape, factors, self.uniform)


def depends(factor: Tensor, *axes: int) -> bool:
    """Whether a factor depends on any of the axes."""
    return any(factor.shape[axis] > 1 for axis in axes)


def axes_of(factor: Tensor) -> list[int]:
    """The axes that a factor depends on."""
    return [axis for axis, size in enumerate(factor.shape) if size > 1]


def compact(factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Factors of size 1 along axes on which all their entries are equal; those with a single entry are left out."""
    result = []
    for factor in factors:
        factor = narrow(factor)  # first, so that few entries are compared
        for axis in axes_of(factor):
            first = factor.narrow(axis, 0, 1)
            if bool((factor == first).all()):
                factor = first
        if factor.numel() > 1:
            result.append(factor)
    return tuple(result)


def narrow(factor: Tensor) -> Tensor:
    """A factor of size 1 along the axes along which it was only expanded."""
    for axis, stride in enumerate(factor.stride()):
        if stride == 0 and factor.shape[axis] > 1:
            factor = factor.narrow(axis, 0, 1)
    return factor
