"""Noticing writes to the user's parameters during a measurement, and putting back what was there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class WrittenError(MisconfigurationException):
    """Computing the loss wrote to what training goes on from."""


def written(what: str, put_back: bool = False) -> WrittenError:
    """The error for a write to `what`."""
    return WrittenError(
        f"computing the loss wrote to {what}, which was put back, and nothing more is measured: pass "
        "loss_fn=lambda module, batch: ... that only reads it"
        if put_back
        else f"computing the loss wrote to {what}, which is thereby changed in training too: pass "
        "loss_fn=lambda module, batch: ... that only reads it"
    )


def is_written(error: BaseException | None) -> bool:
    """Whether an error says that something was written to, also where another one was made of it."""
    while error is not None and not isinstance(error, WrittenError):
        error = error.__cause__
    return error is not None


@contextmanager
def unwritten(module: nn.Module, keep: bool) -> Iterator[None]:
    """Notice a write to the parameters of a module, whichever way it was made.

    Args:
        module: The user's module.
        keep: Keep a copy of the parameters meanwhile, and put back bit for bit what has changed. Else their sums tell.

    Raises:
        WrittenError: If a parameter has changed; names it.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = layer.weight.clone()
        >>> try:
        ...     with unwritten(layer, keep=True):
        ...         _ = layer.weight.data.clamp_(-0.01, 0.01)
        ... except WrittenError as error:
        ...     print("weight" in str(error), torch.equal(layer.weight, before))
        True True
    """
    # Tensors that keep their elements in a way of their own are watched by their version alone; see `Twin.forget`.
    parameters = {name: p.detach() for name, p in module.named_parameters() if type(p) is nn.Parameter and _is_plain(p)}
    tensors = list(parameters.values())
    kept = [tensor.clone() for tensor in tensors] if keep else []
    sums = [] if keep else _sums(tensors)

    def changed() -> str | None:
        flags = _differ(tensors, kept) if keep else [a != b for a, b in zip(_sums(tensors), sums, strict=True)]
        for tensor, copy, differs in zip(tensors, kept, flags, strict=False):
            if differs:
                tensor.data.copy_(copy)  # under a version of its own, so that nothing seems to have been written
        return next((f"parameter {name!r}" for name, differs in zip(parameters, flags, strict=True) if differs), None)

    try:
        yield
    except BaseException as error:
        name = changed()
        if name is not None and isinstance(error, Exception):
            raise written(name, put_back=keep) from error
        raise
    name = changed()
    if name is not None:
        raise written(name, put_back=keep)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type != "meta"


def _bits(tensor: Tensor) -> Tensor:
    """The elements as integers, by eights of bytes if that can be: a NaN equals itself then, and sums are exact."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    per_eight = 8 // tensor.element_size()
    if tensor.is_contiguous() and tensor.numel() % per_eight == 0 and tensor.storage_offset() % per_eight == 0:
        return tensor.flatten().view(torch.int64)
    return tensor.view(_BITS[tensor.element_size()])


@torch.no_grad()
def _sums(tensors: Sequence[Tensor]) -> list[int]:
    """Of each tensor the sum of its bits taken as integers; read from each device at once."""
    return _read([_bits(tensor).sum(dtype=torch.int64) for tensor in tensors])


@torch.no_grad()
def _differ(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[int]:
    return _read([(_bits(a) != _bits(b)).any().long() for a, b in zip(tensors, others, strict=True)])


def _read(numbers: Sequence[Tensor]) -> list[int]:
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for position, number in enumerate(numbers):
        by_device[number.device].append(position)
    read = [0] * len(numbers)
    for positions in by_device.values():
        values = torch.stack([numbers[position] for position in positions]).tolist()
        for position, value in zip(positions, values, strict=True):
            read[position] = value
    return read
