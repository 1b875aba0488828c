"""Detecting writes to the user's parameters and data during a measurement, and undoing them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Total bytes of data that are watched; all of them are read at the start and at the end of a measurement.
_MOST_DATA = 2**30


class WrittenError(MisconfigurationException):
    """Computing the loss wrote to tensors that training uses."""


def written(what: str, put_back: bool = False) -> WrittenError:
    """The error for a write to `what`."""
    return WrittenError(
        f"computing the loss wrote to {what}, which was put back, and this probe stops measuring: pass "
        "loss_fn=lambda module, batch: ... that only reads it"
        if put_back
        else f"computing the loss wrote to {what}, which is now changed in training too: pass "
        "loss_fn=lambda module, batch: ... that only reads it"
    )


def is_written(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a `WrittenError`."""
    while error is not None and not isinstance(error, WrittenError):
        error = error.__cause__
    return error is not None


@contextmanager
def unwritten(module: nn.Module, keep: bool) -> Iterator[None]:
    """Detect any kind of write to the parameters of a module, or to data watched inside the block.

    Args:
        module: The user's module.
        keep: Keep copies, and restore changed tensors bit for bit. Otherwise changes are detected by checksums.

    Raises:
        WrittenError: If a tensor has changed; the message names it.

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
    watch = _Watch(keep)
    # Tensors with their own storage of elements are checked only by their version; see `Twin.forget`.
    parameters = {f"parameter {name!r}": p for name, p in module.named_parameters() if type(p) is nn.Parameter}
    watch.add({name: p.detach() for name, p in parameters.items() if _can_be_summed(p)})
    outer = _watching.set(watch)
    try:
        yield
    except BaseException as error:
        name = watch.changed()
        if name is not None and isinstance(error, Exception):
            raise written(name, put_back=keep) from error
        raise
    finally:
        _watching.reset(outer)
    name = watch.changed()
    if name is not None:
        raise written(name, put_back=keep)


def watch_data(what: str, tensor: Tensor) -> None:
    """Watch a tensor that the user's code will get; call it inside `unwritten`.

    Tensors in files, and beyond a total of one gigabyte, are not watched, because reading them takes too long.
    """
    watch = _watching.get()
    if watch is not None and _can_be_summed(tensor) and tensor.untyped_storage().filename is None:
        watch.add_data(what, tensor)


class _Watch:
    """Tensors that must not change, with copies or checksums of their values."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._tensors: dict[str, Tensor] = {}
        self._kept: list[Tensor] = []
        self._sums: list[int] = []
        self._data: set[int] = set()
        self._left = _MOST_DATA

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Watch more tensors from now on."""
        self._tensors.update(tensors)
        if self._keep:
            self._kept += [tensor.clone() for tensor in tensors.values()]
        else:
            self._sums += _sums([*tensors.values()])

    def add_data(self, what: str, tensor: Tensor) -> None:
        """Watch another tensor if it is new and within the limit."""
        if tensor.data_ptr() not in self._data and tensor.nbytes <= self._left:
            self._data.add(tensor.data_ptr())
            self._left -= tensor.nbytes
            self.add({what: tensor})

    def changed(self) -> str | None:
        """The name of the first changed tensor; all changed tensors are restored if there are copies."""
        tensors = [*self._tensors.values()]
        if self._keep:
            flags: Sequence[int] = _differ(tensors, self._kept)
        else:
            flags = [now != before for now, before in zip(_sums(tensors), self._sums, strict=True)]
        for tensor, copy, differs in zip(tensors, self._kept, flags, strict=False):
            if differs:
                tensor.data.copy_(copy)  # `.data` keeps the tensor's version
        return next((what for what, differs in zip(self._tensors, flags, strict=True) if differs), None)


_watching: ContextVar[_Watch | None] = ContextVar("watching", default=None)


def _can_be_summed(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
    return strided and tensor.device.type != "meta"


def _bits(tensor: Tensor) -> Tensor:
    """The elements as integers, eight bytes each if possible. A NaN then equals itself, and sums are exact."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    per_eight = 8 // tensor.element_size()
    if tensor.is_contiguous() and tensor.numel() % per_eight == 0 and tensor.storage_offset() % per_eight == 0:
        return tensor.flatten().view(torch.int64)
    return tensor.view(_BITS[tensor.element_size()])


@torch.no_grad()
def _sums(tensors: Sequence[Tensor]) -> list[int]:
    """The sum of each tensor's bits, taken as integers; with one read per device."""
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
