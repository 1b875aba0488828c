"""Peak memory of a call, over what the process held before."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_MIB = 2**20


def peak_mib(run: Callable[[], Any]) -> float | None:
    """MiB that a call needs at its peak beyond what is resident before it; None where the system does not tell.

    On a GPU the peak of PyTorch's allocator, else that of the process (Linux). Call it in a process of its own, after
    `return_memory`.
    """
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
        before = _status("VmRSS")
        run()
        return max(0, _status("VmHWM") - before) / 1024
    except OSError:
        return None


def return_memory() -> None:
    """Let the allocator give large blocks back at once: what it keeps would hide the next peak. Costs speed."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 65536)  # M_TRIM_THRESHOLD
    except OSError:
        pass


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
