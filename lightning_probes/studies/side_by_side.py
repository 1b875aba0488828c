"""Parts of a study in several processes."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeAlias

import torch

Part: TypeAlias = Callable[[], None]
"""A part of a study, which keeps its own result; pickled if there are several processes."""


def check_picklable(functions: dict[str, Any]) -> None:
    """Check that other processes can be given some functions.

    Raises:
        ValueError: If one can't be; the message names its argument.
    """
    for name, function in functions.items():
        try:
            pickle.dumps(function)
        except Exception as error:  # objects raise errors of many kinds
            raise ValueError(
                f"{name} can't be passed to another process ({type(error).__name__}): define it with def at the top of "
                "a module, or pass processes=1"
            ) from error


def run_all(parts: Sequence[Part], processes: int) -> None:
    """Run parts that do not depend on each other.

    Args:
        parts: The parts.
        processes: How many run at once. With 1, they run in this process. Others have this process' settings of
            PyTorch, its number of threads included, so that they compute the same numbers.

    Raises:
        RuntimeError: If a process was killed.
    """
    if processes == 1 or len(parts) < 2:
        for part in parts:
            part()
        return
    context = multiprocessing.get_context("spawn")  # a forked process can't use the GPU
    with ProcessPoolExecutor(min(processes, len(parts)), context, _set_up, (_settings(),)) as pool:
        futures = [pool.submit(part) for part in parts]
        try:
            for future in futures:
                future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process of the study was killed, or could not start: what is finished is kept, so call it again to "
                "continue; pass fewer processes= if memory ran out, and call it below if __name__ == '__main__' in a "
                "script"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _settings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }


def _set_up(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["dtype"])
    torch.set_float32_matmul_precision(settings["matmul"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
