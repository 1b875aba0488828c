"""Reading in a separate process that presents itself as one of the loader's workers."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils import worker as torch_worker

from lightning_probes.probing.isolation.seeding import derived_seed, seed_generators
from lightning_probes.probing.origin import comes_from

# A batch that takes longer never arrives: it may wait for a thread that does not exist in the reading process.
_PATIENCE_SECONDS = 300
_OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True)
class Workers:
    """The worker processes that a loader reads in.

    Args:
        number: Number of workers; 0 if the loader reads in the main process.
        init: The loader's `worker_init_fn`.
        context: Its `multiprocessing_context`; None for the default.
    """

    number: int = 0
    init: Callable[[int], object] | None = None
    context: Any = None

    @property
    def set_up(self) -> bool:
        """Whether the user's code initialises the workers; Lightning's own `worker_init_fn` only seeds them."""
        init = getattr(self.init, "func", self.init)
        return init is not None and not comes_from(init)

    @staticmethod
    def of(loader: Any) -> Workers:
        """The workers of a DataLoader."""
        return Workers(loader.num_workers, loader.worker_init_fn, loader.multiprocessing_context)

    def become(self, number: int, dataset: Any, seed: int) -> None:
        """Make `get_worker_info()` in this process return the information of a worker. This is not undone."""
        info = None
        if self.number > 0:
            info = torch_worker.WorkerInfo(
                id=number, num_workers=self.number, seed=derived_seed(seed, number), dataset=dataset
            )
        torch_worker._worker_info = info

    def start(self, number: int, dataset: Any, seed: int) -> None:
        """Become a worker and run the user's `worker_init_fn`."""
        self.become(number, dataset, seed)
        seed_generators(seed, number)
        if self.number > 0 and self.init is not None:
            self.init(number)


def elsewhere(items: Iterable[Any], workers: Workers) -> Iterator[Any]:
    """Iterate in another process. Nothing there affects this process, not even the positions of open files.

    Args:
        items: The iterable; it is iterated over in the other process.
        workers: The process starts in the same way as these; without workers it is forked.

    Raises:
        MisconfigurationException: If nothing arrives for five minutes; the message names `data`.
    """
    context = workers.context if workers.number > 0 else "fork"
    loader: DataLoader[Any] = DataLoader(
        _Elsewhere(items), batch_size=None, num_workers=1, collate_fn=_as_it_is, multiprocessing_context=context,
        generator=torch.Generator(), timeout=_PATIENCE_SECONDS,
    )  # fmt: skip
    try:
        yield from loader
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        raise MisconfigurationException(
            f"no batch arrived within {_PATIENCE_SECONDS} seconds from the process that reads the probe data: pass a "
            "dataset that can be copied, such as a TensorDataset, as data="
        ) from error


def can_fork() -> bool:
    """Whether the platform can fork processes."""
    return "fork" in multiprocessing.get_all_start_methods()


@dataclass
class _Elsewhere(IterableDataset[Any]):
    items: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        # A daemon may not have children, but a loader inside may start workers. They end with their parent.
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        _reopen_files()
        return iter(self.items)


def _reopen_files() -> None:
    """Reopen the files that a fork shares with its parent: otherwise both would share their positions."""
    for entry in os.listdir(_OPEN_FILES) if _OPEN_FILES.is_dir() else ():
        with suppress(OSError):  # such as the descriptor of the listing itself, which is closed by now
            number = int(entry)
            read_only = _access(number) == os.O_RDONLY
            if read_only and stat.S_ISREG(os.fstat(number).st_mode):
                place = os.lseek(number, 0, os.SEEK_CUR)
                again = os.open(_OPEN_FILES / entry, os.O_RDONLY | os.O_CLOEXEC)
                os.lseek(again, place, os.SEEK_SET)
                os.dup2(again, number, inheritable=False)
                os.close(again)


def _access(number: int) -> int:
    import fcntl  # not on Windows, which has no such directory either

    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE


def _as_it_is(batch: Any) -> Any:
    return batch
