"""The processes that share a measurement: sums over them, which end in all of them when one fails."""

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
    """Another process of the run failed in the measurement that this one takes part in."""


class Processes:
    """The processes of a run. Without others, sums are what they were given.

    A process that fails would leave the others waiting for its part of the next sum. So every exchange begins with a
    count of failures, which a failing process joins too (see `together`), whatever the others were about to exchange.

    Args:
        rank: This process.
        size: Number of processes.
        device: Where the process group exchanges tensors.

    Attributes:
        out_of_memory: Whether a lack of memory, and nothing else, ended the last `together`, in whichever process.
        written: Whether a write to a parameter ended it.

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
        self._over = False  # nobody to meet any more: they know, they left, or they can't be reached

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        if self.size == 1:
            return tensor
        with self._exchange():
            total = tensor.to(self.device, copy=True)
            dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, tensor: Tensor, group: Any = None) -> list[Tensor]:
        """A tensor of one shape in all processes, from each of them. For `torchmetrics.Metric(dist_sync_fn=...)`."""
        if self.size == 1:
            return [tensor]
        own = tensor.to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(parts, own)
        return [part.to(tensor.device) for part in parts]

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the first process has under these names, which all have with the same shapes."""
        if self.size == 1:
            return dict(tensors)
        # As bytes: not every kind of number can be exchanged, and one message is faster than many.
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
        """The value that the first process has, in every process."""
        if self.size == 1:
            return value
        values = [value]
        with self._exchange():
            dist.broadcast_object_list(values, device=torch.device(self.device))
        return values[0]

    def everyone(self, value: T) -> list[T]:
        """The value that each process has, in every process."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with self._exchange():
            dist.all_gather_object(values, value)
        return values

    def any(self, holds: bool) -> bool:
        """Whether something holds in any of the processes."""
        return any(self.everyone(holds))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What ends early in one process ends in all of them: here, or at their next exchange.

        Raises:
            PeerError: If another process failed; says which, and of what.
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
        if self._over:  # said before, to somebody who went on all the same
            raise PeerError(self._reasons)
        with _undisturbed_by_signals():
            interrupted = self._meet(None)
            if self._over:
                raise KeyboardInterrupt("another process was interrupted") if interrupted else PeerError(self._reasons)
            try:
                yield
            except BaseException:
                self._over = True  # should they wait, they can't be reached
                raise

    def _meet(self, error: BaseException | None) -> bool:
        """Tell each other of failures; whether any of them is an interruption."""
        interrupts = not isinstance(error, (Exception, type(None)))
        mine = (error is not None, is_out_of_memory(error), interrupts, is_written(error))
        counts = torch.tensor(mine, dtype=torch.float32, device=self.device)
        self._over = True  # should the exchange itself fail
        self._reasons = "an exchange between the processes broke off: see the first error in the logs of all of them"
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
    """Whether an error says that an allocation failed, on whichever device.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(ValueError())
        (True, False)
    """
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))


@contextmanager
def _undisturbed_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end: a process that left in the middle would leave the others waiting."""
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
