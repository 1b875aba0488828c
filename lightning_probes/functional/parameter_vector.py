"""A parameter dict as one flat vector, and back.

Iterative methods (Lanczos, Hutchinson) need a vector; models need a dict. The order is that of the dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor


def to_vector(params: Mapping[str, Tensor]) -> Tensor:
    """Concatenate the tensors of a parameter dict into one vector, in the dict's order.

    Args:
        params: Floating-point tensors of any shapes, on one device.

    Returns:
        A new vector, shape `(total number of elements,)`, in float32 or the widest dtype of `params`, whichever is
        wider.

    Raises:
        ValueError: If `params` is empty or holds a tensor that is not floating-point.

    Example:
        >>> to_vector({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        tensor([1., 1., 0.])
    """
    if not params:
        raise ValueError("params is empty: a vector needs at least one parameter")
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"parameter {name!r} has dtype {tensor.dtype}; leave it out of params, which must be floating-point"
            )
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in params.values()), torch.float32)
    return torch.cat([tensor.reshape(-1).to(dtype) for tensor in params.values()])


def to_dict(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a flat vector into tensors with the names, shapes and dtypes of a parameter dict.

    Args:
        vector: Shape `(total number of elements of like,)`, laid out as `to_vector(like)`.
        like: Tensors that give the names, order, shapes and dtypes.

    Returns:
        A dict of views of `vector` (copies if the dtype differs).

    Raises:
        ValueError: If the number of elements differs.

    Example:
        >>> to_dict(torch.arange(3.0), like={"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        {'weight': tensor([[0., 1.]]), 'bias': tensor([2.])}
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"vector has shape {tuple(vector.shape)}, but the parameters in `like` hold {sum(sizes)} elements"
        )
    pieces = zip(like.items(), torch.split(vector, sizes), strict=True)
    return {name: piece.view(tensor.shape).to(tensor.dtype) for (name, tensor), piece in pieces}
