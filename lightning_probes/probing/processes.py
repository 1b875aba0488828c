"""The processes that share a measurement: sums over them, and errors that end the measurement in all of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_probes.probing.isolation.writes import is_written

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another process failed in the measurement that this process takes part in."""


class Processes:
    """The processes of a run. With a single process, each sum is its own input.

    If a process failed silently, the others would wait forever for its part of the next sum. So every exchange begins
    with a count of failures. A failing process takes part in this count too (see `together`).

    Args:
        rank: This process.
        size: Number of processes.
        device: The device on which the process group exchanges tensors.

    Attributes:
        out_of_memory: Whether the last `together` ended because memory ran out in any process, and for no other reason.
        written: Whether the last `together` ended because of a write to a parameter.

    Example:
        >>> processes = Processes()
        >>> with processes.together():
        ...     processes.sum(torch.ones(2))
        tensor([1., 1.])
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.out_of_memory = self.written = False
        self._reasons = ""
        self._over = False  # no exchange is possible any more: the others have failed, left or can't be reached

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        if self.size == 1:
            return tensor
        with self._exchange():
            total = tensor.to(self.device, copy=True)
            dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, tensor: Tensor, group: Any = None) -> list[Tensor]:
        """The tensors of all processes, which must have one shape. For `torchmetrics.Metric(dist_sync_fn=...)`."""
        if self.size == 1:
            return [tensor]
        own = tensor.to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(parts, own)
        return [part.to(tensor.device) for part in parts]

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first process. All processes have tensors of the same names and shapes."""
        if self.size == 1:
            return dict(tensors)
        # As bytes, because not every dtype can be exchanged, and because one message is faster than many.
        received = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        parts = [tensor.flatten().view(torch.uint8) for tensor in received.values()]
        if parts:
            together = torch.cat(parts)
            with self._exchange():
                dist.broadcast(together, 0)
            contents = torch.split(together, [len(part) for part in parts])
            for part, content in zip(parts, contents, strict=True):
                part.copy_(content)
        return received

    def from_first(self, value: T) -> T:
        """The value of the first process, returned in every process."""
        if self.size == 1:
            return value
        values = [value]
        with self._exchange():
            dist.broadcast_object_list(values, device=torch.device(self.device))
        return values[0]

    def everyone(self, value: T) -> list[T]:
        """The values of all processes, by rank, returned in every process."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with self._exchange():
            dist.all_gather_object(values, value)
        return values

    def any(self, holds: bool) -> bool:
        """Whether `holds` is true in at least one process."""
        return any(self.everyone(holds))

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the block raises in one process, it raises in all of them: at their next exchange, or at the end.

        Raises:
            PeerError: If another process failed; the message names the process and its error.
            KeyboardInterrupt: If another process was interrupted.
        """
        self.out_of_memory = self.written = self._over = False
        try:
            yield
            if self.size > 1:
                with self._exchange():
                    self._over = True
        except BaseException as error:
            if self.size == 1:
                self.out_of_memory, self.written = is_out_of_memory(error), is_written(error)
            elif not self._over:
                with _undisturbed_by_signals():
                    self._meet(error)
            raise

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        if self._over:  # raised before, but the caller went on
            raise PeerError(self._reasons)
        with _undisturbed_by_signals():
            interrupted = self._meet(None)
            if self._over:
                raise KeyboardInterrupt("another process was interrupted") if interrupted else PeerError(self._reasons)
            try:
                yield
            except BaseException:
                self._over = True  # the others may be waiting, but they can't be reached
                raise

    def _meet(self, error: BaseException | None) -> bool:
        """Exchange failures. Returns whether any of them is an interruption."""
        interrupts = not isinstance(error, (Exception, type(None)))
        mine = (error is not None, is_out_of_memory(error), interrupts, is_written(error))
        counts = torch.tensor(mine, dtype=torch.float32, device=self.device)
        self._over = True  # in case the exchange itself fails
        self._reasons = "an exchange between processes failed: look for the first error in the logs of all processes"
        dist.all_reduce(counts)
        failed, out_of_memory, interrupted, written = counts.tolist()
        self._over = bool(failed)
        if failed:
            said: list[str] = [""] * self.size
            dist.all_gather_object(said, "" if error is None else f"{type(error).__name__}: {error}")
            self._reasons = "; ".join(f"process {rank} failed: {what}" for rank, what in enumerate(said) if what)
            self.out_of_memory, self.written = failed == out_of_memory, bool(written)
        return bool(interrupted)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error means that memory ran out, on any device.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(ValueError())
        (True, False)
    """
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))


@contextmanager
def _undisturbed_by_signals() -> Iterator[None]:
    """Postpone Ctrl-C and SIGTERM until the end: if a process left in the middle, the others would wait forever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    handlers = {which: handler for which, handler in handlers.items() if handler is not None}  # not set by Python
    for which in handlers:
        signal.signal(which, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for which, handler in handlers.items():
            signal.signal(which, handler)
        for number in arrived:
            signal.raise_signal(number)
