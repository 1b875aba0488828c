"""Reading samples from a dataset without changing it."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import Any, ClassVar, TypeVar

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter as _LoaderIterator

from lightning_probes.probing.data.workers import Workers, can_fork, elsewhere
from lightning_probes.probing.isolation.copying import COPY, Copier, refuse, share
from lightning_probes.probing.isolation.depth import CopyError
from lightning_probes.probing.isolation.seeding import seed_generator, seed_generators
from lightning_probes.probing.isolation.snapshot import Snapshot
from lightning_probes.probing.origin import comes_from

log = logging.getLogger(__name__)

# Larger arrays are shared, not copied: so much data is not the state of a dataset.
_COPIED_BYTES = 2**28
_READ_ONLY = ("pyarrow", "datasets")
# Streams of these packages store on themselves how far they have been read.
_PLACED = ("datasets.iterable_dataset",)

R = TypeVar("R", bound="Reader")


@dataclass
class Reader:
    """Gives batches made from the user's objects; it iterates over private copies of them.

    Args:
        workers: The loader's workers in training.
        seed: The probe's seed.
        made: The copies that a `Copier` made of the user's objects; None before they are made in another process.

    Attributes:
        theirs: Names of the fields that hold the user's objects.
    """

    theirs: ClassVar[tuple[str, ...]] = ()
    workers: Workers
    seed: int
    made: list[tuple[Any, Any]] | None = None

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError  # each kind of reader implements it

    def own(self: R) -> R:
        """The reader itself; in another process a reader of copies, as far as possible, and the rest is shared.

        Nothing in that process can reach the user's objects. It presents itself as the first of the workers.
        """
        if self.made is not None:
            return self
        own = self.with_copies(Copier(stand_in=within_budget(0), otherwise=share))
        own.workers.start(0, getattr(own, self.theirs[0]), self.seed)
        return own

    def with_copies(self: R, copier: Copier) -> R:
        """A reader of copies of the user's objects."""
        return replace(self, **{name: copier(getattr(self, name)) for name in self.theirs}, made=copier.made)


def read_here_or_elsewhere(reader: Reader, otherwise: Callable[[Any, str, Exception], Any] = refuse) -> Iterator[Any]:
    """Iterate over copies of the user's objects, or in another process if they can't be copied.

    Args:
        reader: A reader of the user's own objects.
        otherwise: See `Copier`.

    Raises:
        MisconfigurationException: If an object can be read only once and can't be copied, or the platform can't fork;
            names `data`.
    """
    what = type(getattr(reader, reader.theirs[0])).__name__
    try:
        return iter(copied(reader, otherwise))
    except ReadOnceError as error:
        raise MisconfigurationException(
            f"{what} can't be read without taking samples away from training ({error}): create it in __iter__, or pass "
            "a dataset that can be copied, such as a TensorDataset, as data="
        ) from error
    except Exception as error:
        if not can_fork() and reader.workers.number == 0:
            raise MisconfigurationException(
                f"{what} can't be copied ({error}), and this platform can't fork a process to read it: pass a dataset "
                "that can be copied, such as a TensorDataset, as data="
            ) from error
        reason = error
    return _or_say_why(elsewhere(reader, reader.workers), what, reason)


def copied(reader: R, otherwise: Callable[[Any, str, Exception], Any] = refuse) -> R:
    """A reader of copies of the user's objects, in this process.

    Raises:
        CopyError: If an object can't be copied.
    """
    return reader.with_copies(Copier(stand_in=within_budget(_COPIED_BYTES), otherwise=otherwise))


def _or_say_why(items: Iterator[Any], what: str, reason: Exception) -> Iterator[Any]:
    """Items from another process; its error may come from running there, such as CUDA after a fork."""
    try:
        yield from items
    except MisconfigurationException:
        raise
    except Exception as error:
        last = str(error).rstrip().rpartition("\n")[2]
        raise MisconfigurationException(
            f"{what} can't be copied ({reason}), and reading it in another process failed with {type(error).__name__} "
            f"({last}): pass a dataset that can be copied, such as a TensorDataset, as data="
        ) from error


class ReadOnceError(CopyError):
    """An object can't be copied, and reading it consumes it, also from another process."""


def refuse_what_can_be_read_once(value: Any, path: str, error: Exception) -> Any:
    """For `Copier(otherwise=...)`: raise an error, for iterators and connections a `ReadOnceError`."""
    once = isinstance(value, (Iterator, socket.socket, Connection, Queue))
    if once and not (isinstance(value, io.IOBase) and value.seekable()):
        where = f" at {path!r}" if path else ""
        raise ReadOnceError(
            f"{type(value).__name__}{where} can't be copied ({type(error).__name__}: {error})"
        ) from error
    return refuse(value, path, error)


@dataclass
class Batches(Reader):
    """Batches of a map-style dataset, each read from the same state of the dataset.

    Generators (the global ones and the dataset's own) are seeded by the batch's number, so a batch does not depend on
    the other batches that are read. Run it inside `isolated_rng`.

    Args:
        dataset: The user's dataset.
        collate: The user's `collate_fn`.
        plan: Number and key of each batch.
        many: Whether a key is a list of indices to collate; otherwise `dataset[key]` is a batch.
    """

    theirs: ClassVar[tuple[str, ...]] = ("dataset", "collate")
    dataset: Any = None
    collate: Callable[[Any], Any] = list
    plan: Sequence[tuple[int, Any]] = ()
    many: bool = True

    def __iter__(self) -> Iterator[Any]:
        own = self.own()
        snapshot = Snapshot(own.made or ())
        for number, key in self.plan:
            snapshot.restore()
            yield own.batch(number, key)

    def batch(self, number: int, key: Any) -> Any:
        """Read one batch from the copies."""
        seed_generators(self.seed, number)
        for position, (_, thing) in enumerate(self.made or ()):
            seed_generator(thing, self.seed, number, position)
        # Copied, because the batch may share memory with the dataset.
        return Copier()(self.collate(_fetch(self.dataset, key) if self.many else self.dataset[key]))


def read(reader: Batches) -> Iterator[Any]:
    """Read batches on demand: in this process if possible, otherwise in a process like one of the loader's workers.

    A dataset that `worker_init_fn` sets up is read in such a process from the start. If reading fails here, it
    continues there.
    """
    workers = reader.workers
    if workers.number == 0:
        yield from read_here_or_elsewhere(reader)
        return
    done = 0
    if not workers.set_up:
        try:
            for batch in read_here_or_elsewhere(reader):
                yield batch
                done += 1
        except MisconfigurationException:
            raise
        except Exception as error:
            log.debug("reading failed in this process and continues in a worker: %s", error)
        else:
            return
    yield from elsewhere(replace(reader, plan=reader.plan[done:]), workers)


def _fetch(dataset: Any, key: list[Any]) -> Any:
    if callable(getattr(dataset, "__getitems__", None)):
        return dataset.__getitems__(key)
    return [dataset[index] for index in key]


def within_budget(size: int) -> Callable[[Any, Copier], Any]:
    """A `stand_in` that copies arrays and tensors up to a total of `size` bytes, and shares the rest.

    A loader's current iterator is left out: a copy of the loader starts its own.
    """
    left = size

    def stand_in(value: Any, copier: Copier) -> Any:
        nonlocal left
        if comes_from(type(value), _READ_ONLY) and not comes_from(type(value), _PLACED):
            return value
        if isinstance(value, Iterable) and isinstance(
            under_way := _attributes(value).get("_iterator"), _LoaderIterator
        ):
            copier.memo[id(under_way)] = None
        if not isinstance(value, (Tensor, np.ndarray)):
            return COPY
        needed = value.numel() * value.element_size() if isinstance(value, Tensor) else value.nbytes
        if needed > left:
            return value
        left -= needed
        return COPY

    return stand_in


def _attributes(value: Any) -> dict[str, Any]:
    try:
        attributes: dict[str, Any] = vars(value)
    except TypeError:
        return {}
    return attributes
