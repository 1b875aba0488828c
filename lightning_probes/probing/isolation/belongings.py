"""Copies of objects with outside effects: finalizers, memory shared with other processes, open files."""

from __future__ import annotations

import ctypes
import io
import os
import threading
import types
from multiprocessing.sharedctypes import SynchronizedBase
from multiprocessing.synchronize import Event
from typing import Any
from weakref import WeakValueDictionary

FILES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO)
_CTYPES = (ctypes.Structure, ctypes.Union, ctypes.Array, ctypes._SimpleCData)

_without_finalizer: WeakValueDictionary[type, type] = WeakValueDictionary()


def without_finalizer(kind: type) -> type:
    """The class for copies of objects of a class: the class itself, or a subclass whose `__del__` does nothing.

    A copy must not close resources that the original still uses.

    Example:
        >>> class Connection:
        ...     def __del__(self):
        ...         print("closed")
        >>> issubclass(without_finalizer(Connection), Connection), without_finalizer(list) is list
        (True, True)
        >>> copied = object.__new__(without_finalizer(Connection))
        >>> del copied
    """
    finalizer = getattr(kind, "__del__", None)
    if not isinstance(finalizer, types.FunctionType) or finalizer is _nothing:
        return kind
    if kind not in _without_finalizer:
        namespace = {"__del__": _nothing, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        # By `type.__new__`, because the user's metaclass or `__init_subclass__` may register new classes.
        made = type.__new__(type(kind), kind.__name__, (_Unlisted, kind), {**namespace, "__slots__": ()})
        _without_finalizer[kind] = made
        return made
    return _without_finalizer[kind]


def is_shared_value(value: Any) -> bool:
    """Whether this is a `multiprocessing.Value` or `Array`, with or without a lock, or another ctypes object."""
    return isinstance(value, (SynchronizedBase, *_CTYPES))


def private_value(value: Any) -> Any:
    """A copy of such a value in its own memory, with the same lock.

    Example:
        >>> shared = ctypes.c_int(3)
        >>> private = private_value(shared)
        >>> private.value = 4
        >>> shared.value
        3
    """
    if not isinstance(value, SynchronizedBase):
        return type(value).from_buffer_copy(value)
    copied: Any = object.__new__(type(value))
    vars(copied).update(vars(value), _obj=private_value(value.get_obj()))
    return copied


def private_event(event: Event) -> threading.Event:
    """An event for this process alone, set if the shared event is set."""
    private = threading.Event()
    if event.is_set():
        private.set()
    return private


def reopened(file: Any) -> Any:
    """The same file, opened again at the same position; reading it does not move the original's position."""
    if file.closed:
        return file
    if file.writable():
        raise TypeError("it is open for writing")
    text: dict[str, Any] = (
        {"encoding": file.encoding, "errors": file.errors} if isinstance(file, io.TextIOWrapper) else {}
    )
    reopened = open(os.fspath(file.name), file.mode, **text)  # noqa: SIM115 - the owner of the copy closes it
    reopened.seek(file.tell())
    return reopened


class _Unlisted:
    __slots__ = ()

    def __init_subclass__(cls, **_: Any) -> None:
        pass


def _nothing(_: Any) -> None:
    """Do nothing: the original still owns the resources."""
