"""Tensors of subclasses, taken as plain ones."""

from __future__ import annotations

import torch
from torch import Tensor


def plain(tensor: Tensor) -> Tensor:
    """A tensor as one of `torch.Tensor`, in the same graph: a subclass may need what only its own methods set.

    One that keeps its elements in a way of its own, such as a nested tensor, stays what it is.

    Example:
        >>> class Labelled(Tensor):
        ...     def clone(self):
        ...         return self.labels
        >>> type(plain(torch.ones(2).as_subclass(Labelled))).__name__
        'Tensor'
    """
    kind = type(tensor)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.as_subclass(tensor, Tensor)
