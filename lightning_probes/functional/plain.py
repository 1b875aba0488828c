"""Conversion of tensor subclasses to plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def plain(tensor: Tensor) -> Tensor:
    """A tensor as a plain `torch.Tensor` in the same graph: methods of a subclass may need attributes it has lost.

    A subclass with its own storage of elements, such as a nested tensor, is returned unchanged.

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
