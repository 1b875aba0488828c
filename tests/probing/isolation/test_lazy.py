"""Whoever reads a long container gets copies of its items, whichever way these are read, and what is new as it is."""

import copy
import json
import pickle
import random
from collections import OrderedDict, defaultdict, deque

import pytest

from lightning_probes.probing.isolation.lazy import is_constant, lazy

SEQUENCES = {"list": list, "tuple": tuple, "deque": lambda items: deque(items, maxlen=5)}
MAPPINGS = {"dict": dict, "OrderedDict": OrderedDict, "defaultdict": lambda items: defaultdict(list, items)}


def with_copies(container):
    memo = {}
    return lazy(container, lambda item: memo.setdefault(id(item), list(item)))


WAYS = {
    "by its index": lambda items: items[0],
    "from the end": lambda items: items[-3],
    "going through": lambda items: next(iter(items)),
    "backwards": lambda items: list(reversed(items))[-1],
    "a list of it": lambda items: list(items)[-3],
    "a tuple of it": lambda items: tuple(items)[-3],
    "starred": lambda items: [*items][-3],
    "unpacked": lambda items: (lambda first, *_: first)(*items),
    "in order": lambda items: sorted(items)[0],
    "least": min,
    "added": lambda items: (items + type(items)())[0],
    "added to others": lambda items: (type(items)() + items)[0],
    "repeated": lambda items: (items * 2)[0],
    "so many times": lambda items: (2 * items)[0],
    "copied": lambda items: copy.copy(items)[0],
    "all copied": lambda items: items.copy()[0] if hasattr(items, "append") else items[0],
    "in pairs": lambda items: next(zip(items, items, strict=True))[1],
    "sliced": lambda items: items[:2][0] if not isinstance(items, deque) else items[0],
    "drawn": lambda items: random.Random(0).sample(items, 3)[0],
    "popped": lambda items: items.pop() if hasattr(items, "pop") else items[0],
    "popped first": lambda items: items.popleft() if isinstance(items, deque) else items[0],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_no_way_to_read_a_sequence_leads_to_an_original(kind, way):
    original = SEQUENCES[kind]([[1], [2], [3]])
    items = with_copies(original)
    assert type(items).__name__ == kind
    assert isinstance(items, type(original))
    WAYS[way](items).append(9)
    assert list(original) == [[1], [2], [3]]


MAPPED = {
    "by its key": lambda items: items["a"],
    "asked for": lambda items: items.get("a"),
    "set if absent": lambda items: items.setdefault("a", 3),
    "values": lambda items: next(iter(items.values())),
    "items": lambda items: dict(items.items())["a"],
    "values backwards": lambda items: list(reversed(items.values()))[-1],
    "items backwards": lambda items: dict(reversed(items.items()))["a"],
    "a dict of it": lambda items: dict(items)["a"],
    "starred": lambda items: {**items}["a"],
    "joined": lambda items: (items | {})["a"],
    "taken over": lambda items: OrderedDict(items)["a"],
    "copied": lambda items: copy.copy(items)["a"],
    "all copied": lambda items: items.copy()["a"],
    "popped": lambda items: items.pop("a"),
    "popped last": lambda items: items.popitem()[1],
    "popped first": lambda items: items.popitem(last=False)[1] if hasattr(items, "move_to_end") else items["a"],
}


@pytest.mark.parametrize("way", MAPPED)
@pytest.mark.parametrize("kind", MAPPINGS)
def test_no_way_to_read_a_mapping_leads_to_an_original(kind, way):
    original = MAPPINGS[kind]({"a": [1], "b": [2]})
    items = with_copies(original)
    assert isinstance(items, type(original))
    assert (len(items), len(items.values()), list(items)) == (2, 2, ["a", "b"])
    MAPPED[way](items).append(9)
    assert original == {"a": [1], "b": [2]}


def test_an_item_is_the_same_one_each_time_and_a_new_one_stays_itself():
    items, more = with_copies([[1], [2]]), [3]
    assert items[0] is items[0]
    assert [*items][1] is items[1]
    items.append(more)
    items[0] = more
    assert items[0] is items[-1] is more
    mapping = with_copies({"a": [1]})
    mapping["a"] = more
    assert mapping["a"] is mapping.get("b", more) is more


@pytest.mark.parametrize("original", [[[1], [2]], deque([[1], [2]], maxlen=4), {"a": [1]}, OrderedDict(a=[1])])
def test_it_goes_to_other_processes_and_files_as_what_it_is(original):
    items = with_copies(original)
    for arrived in (pickle.loads(pickle.dumps(items)), copy.deepcopy(items)):
        assert type(arrived) is type(original)
        assert arrived == original
    assert getattr(copy.deepcopy(items), "maxlen", None) == getattr(original, "maxlen", None)
    if isinstance(original, list):
        assert json.dumps(items) == "[[1], [2]]"


def test_what_nobody_can_change_is_known_as_constant():
    assert is_constant([1, "a", (1, "b"), None])
    assert is_constant({(1, 2): "a"})
    assert not is_constant([1, (1, [2])])
    assert not is_constant({"a": [1]})


def test_a_mapping_whose_keys_can_be_changed_has_no_such_kind():
    assert with_copies({deque: [1]}) is None
    assert with_copies({1, 2}) is None
