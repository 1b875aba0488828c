"""What belongs to others as well: to a finaliser, to other processes, to one thread, to a class with one object."""

import copy
import ctypes
import gc
import multiprocessing
import threading
from multiprocessing.shared_memory import SharedMemory
from typing import ClassVar

import pytest
from torch import nn

from lightning_probes.probing.isolation.copying import Copier, refuse
from lightning_probes.probing.isolation.snapshot import Snapshot


class Resource:
    """Gives up what it owns when it goes."""

    closed: ClassVar[list] = []

    def __init__(self):
        self.seen = []

    def __del__(self):
        self.closed.append(self)


class Closing(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __del__(self):
        Resource.closed.append(self)


class Registry(type):
    made: ClassVar[list] = []

    def __init__(cls, *arguments):
        super().__init__(*arguments)
        Registry.made.append(cls)


class Registered(Resource, metaclass=Registry):
    listed: ClassVar[list] = []

    def __init_subclass__(cls):
        Registered.listed.append(cls)


def local():
    value = threading.local()
    value.seen = [1]
    return value


def set_event():
    event = multiprocessing.get_context("spawn").Event()
    event.set()
    return event


def threading_acquires(lock):
    """Whether another thread gets a lock at once."""
    got = []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(block=False)))
    thread.start()
    thread.join()
    return got[0]


@pytest.mark.parametrize("kind", [Resource, Registered, Closing])
def test_copy_of_an_object_with_a_finaliser_gives_up_nothing(kind):
    resource = kind()
    closed, classes, listed = len(Resource.closed), list(Registry.made), list(Registered.listed)
    copied = Copier()([resource])[0]
    copied.seen.append(1)
    assert isinstance(copied, kind)
    assert type(copied).__name__ == kind.__name__
    del copied
    gc.collect()
    assert resource.seen == []
    assert len(Resource.closed) == closed
    assert (Registry.made, Registered.listed) == (classes, listed)


def test_object_with_a_finaliser_that_is_made_in_a_way_of_its_own_is_shared():
    memory = SharedMemory(create=True, size=8)
    try:
        assert Copier()([memory])[0] is memory
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize(
    ("make", "read", "write"),
    [
        (lambda: multiprocessing.Value("d", 1.0), lambda v: v.value, lambda v: setattr(v, "value", 2.0)),
        (lambda: multiprocessing.RawValue("i", 1), lambda v: v.value, lambda v: setattr(v, "value", 2)),
        (lambda: multiprocessing.Array("i", [1, 2]), lambda v: v[:], lambda v: v.__setitem__(0, 5)),
        (lambda: (ctypes.c_float * 2)(1, 2), lambda v: v[:], lambda v: v.__setitem__(0, 5)),
        (local, lambda v: v.seen, lambda v: v.seen.append(2)),
        (multiprocessing.Event, lambda v: v.is_set(), lambda v: v.set()),
        (set_event, lambda v: v.is_set(), lambda v: v.clear()),
    ],
    ids=["Value", "RawValue", "Array", "ctypes", "local", "Event", "set Event"],
)
def test_what_processes_or_threads_share_is_private_in_the_copy_and_comes_back(make, read, write):
    original = make()
    before = copy.copy(read(original))
    copier = Copier(otherwise=refuse)
    copied = copier(original)
    snapshot = Snapshot(copier.made)
    write(copied)
    assert read(copied) != before
    assert read(original) == before
    snapshot.restore()
    assert read(copied) == before


def test_value_that_processes_share_keeps_its_lock():
    original = multiprocessing.Value("i", 1)
    copied = Copier()(original)
    with original.get_lock():
        assert not threading_acquires(copied.get_lock())


def test_only_object_of_its_kind_keeps_what_it_has():
    class Single:
        only = None

        def __new__(cls):
            if cls.only is None:
                cls.only = super().__new__(cls)
            return cls.only

    Single().parts = parts = [1]
    copied = Copier()(Single())
    copied.parts.append(2)
    assert Single().parts is parts
    assert parts == [1]


def test_object_whose_class_needs_arguments_to_make_it_is_copied_by_its_attributes():
    class Condition:
        def __new__(cls, points):
            return super().__new__(cls)

        def __init__(self, points):
            self.points = points

    original = Condition([1])
    copied = Copier(otherwise=refuse)(original)
    copied.points.append(2)
    assert original.points == [1]
    assert type(copied) is Condition
