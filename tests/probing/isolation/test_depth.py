"""A long chain of objects is copied to its end or refused, never shared from some link on."""

import functools
import sys
import threading
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from lightning_probes.probing.isolation.copying import Copier
from lightning_probes.probing.isolation.depth import CopyError
from lightning_probes.probing.isolation.twin import Twin


@dataclass(slots=True)
class Slotted:
    next: object


class Reduced:
    def __init__(self, link):
        self.next = link

    def __reduce__(self):
        return Reduced, (self.next,)


class Nested(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


LINKS = {
    "object": lambda link: SimpleNamespace(next=link),
    "slots": Slotted,
    "reduced": Reduced,
    "module": Nested,
    "list": lambda link: [link],
    "tuple": lambda link: (link,),
    "dict": lambda link: {"next": link},
    "deque": lambda link: deque([link]),
    "partial": lambda link: functools.partial(print, link),
    "closure": lambda link: lambda: link,
}


def chain(kind, length):
    last = torch.zeros(1)
    whole = last
    for _ in range(length):
        whole = LINKS[kind](whole)
    return whole, last


def is_shared(copier, tensor):
    return not any(original is tensor and copied is not tensor for original, copied in copier.made)


@pytest.mark.parametrize("kind", LINKS)
def test_a_chain_of_hundreds_is_copied_to_its_end(kind):
    whole, last = chain(kind, 500)
    copier, allowed = Copier(), sys.getrecursionlimit()
    copier(whole)
    assert not is_shared(copier, last)
    assert sys.getrecursionlimit() == allowed


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("kind", LINKS)
def test_a_chain_too_long_to_be_followed_is_refused_with_its_place(kind, thread):
    whole, _ = chain(kind, 20_000)
    allowed, raised = sys.getrecursionlimit(), []

    def copy():
        try:
            Copier()({"start": whole})
        except CopyError as error:
            raised.append(str(error))

    if thread:
        another = threading.Thread(target=copy)
        another.start()
        another.join()
    else:
        copy()
    [said] = raised
    assert "a chain of objects too long to be followed: hold them in one list, or call sys.setrecursionlimit" in said
    assert len(said) < 300
    assert sys.getrecursionlimit() == allowed


def test_a_long_chain_that_a_module_holds_is_the_twins_own():
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.chain, self.last = chain("object", 500)

    net = Net()
    link = Twin(net).module.chain
    for _ in range(499):
        link = link.next
    link.next.add_(1)
    assert net.last == 0


class Config:
    """Looks its attributes up in what it holds, without end before it holds anything."""

    def __init__(self, values):
        self.values = values

    def __getattr__(self, name):
        try:
            return self.values[name]
        except KeyError:
            return None


def test_an_object_that_makes_up_attributes_is_copied():
    original = Config({"seen": []})
    copied = Copier()(original)
    copied.seen.append(1)
    assert original.seen == []
    assert type(copied) is Config


def test_an_object_whose_own_code_calls_itself_without_end_is_treated_as_one_that_cannot_be_copied():
    class Endless:
        def __reduce_ex__(self, protocol):
            return self.__reduce_ex__(protocol)

    endless = Endless()
    assert Copier()([endless])[0] is endless
