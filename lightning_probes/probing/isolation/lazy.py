"""Containers whose items are copied when they are first read, for containers with many or large items.

An item must be read before it can be changed, so code that uses such a container never gets an original.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping, ValuesView
from functools import cached_property
from typing import Any, TypeAlias

Later: TypeAlias = Callable[[Any], Any]

PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


def is_plain(items: Iterable[Any]) -> bool:
    """Whether all items (for a mapping: keys and values) are plain immutable values."""
    if isinstance(items, dict):
        return PLAIN.issuperset(map(type, items.values())) and PLAIN.issuperset(map(type, items))
    return PLAIN.issuperset(map(type, items))


def is_constant(items: Collection[Any]) -> bool:
    """Whether all items are plain values or tuples of plain values, such as (path, label)."""
    if isinstance(items, dict):
        return is_constant(items.keys()) and is_constant(items.values())
    if not (PLAIN | {tuple}).issuperset(map(type, items)):
        return False
    return is_plain(itertools.chain.from_iterable(item for item in items if type(item) is tuple))


def lazy(container: Any, later: Later) -> Any:
    """A container that returns copies of the items of another one when they are read; None for other types.

    Args:
        container: A list, tuple, deque or dict.
        later: Maps an item to its copy, the same one each time.

    Example:
        >>> originals = [[1], [2]]
        >>> copies = {id(item): list(item) for item in originals}
        >>> items = lazy(originals, lambda item: copies[id(item)])
        >>> items[0].append(3)
        >>> originals, isinstance(items, list)
        ([[1], [2]], True)
    """
    kind: Any = _KINDS.get(type(container))
    if kind is None or (isinstance(container, dict) and not is_constant(container.keys())):
        return None
    made = _empty(kind, container)
    vars(made).update(_originals=container.values() if isinstance(container, dict) else container, _later=later)
    return made


def lazy_state(state: Mapping[Any, Any], later: Later) -> Any:
    """The state of an optimizer; the state of each parameter is copied when it is read."""
    made = _Default(dict, state)
    vars(made).update(_originals=list(state.values()), _later=later)
    return made


def _empty(kind: Any, container: Any) -> Any:
    if isinstance(container, defaultdict):
        return kind(container.default_factory, container)
    return kind(container, container.maxlen) if isinstance(container, deque) else kind(container)


def _itself(container: Any) -> Any:
    return container


class _Lazy:
    _originals: Iterable[Any] = ()  # empty for copies made by the built-in type, whose items are copies already
    _later: Later

    def _own(self, item: Any) -> Any:
        # Items added later belong to the user of the copy and are returned unchanged.
        return self._later(item) if id(item) in self._ids else item

    @cached_property
    def _ids(self) -> set[int]:
        return set(map(id, self._originals))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self._copied(),)

    def _copied(self) -> Any:
        raise NotImplementedError  # each kind of container implements it


class _Sequence(_Lazy):
    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)  # type: ignore[misc]
        return type(item)(map(self._own, item)) if isinstance(index, slice) else self._own(item)

    def __iter__(self) -> Iterator[Any]:
        return map(self._own, super().__iter__())  # type: ignore[misc]

    def __reversed__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self) - 1, -1, -1))  # type: ignore[arg-type]

    def __add__(self, other: Any) -> Any:
        return self._copied() + other

    def __radd__(self, other: Any) -> Any:
        return other + self._copied()

    def __mul__(self, times: Any) -> Any:
        return self._copied() * times

    __rmul__ = __mul__

    def _copied(self) -> Any:
        kind: Any = next(kind for kind in _KINDS if isinstance(self, kind))
        return kind(iter(self), self.maxlen) if isinstance(self, deque) else kind(iter(self))


class _Changeable(_Sequence):
    def copy(self) -> Any:
        """As of any list."""
        return self._copied()

    def pop(self, *index: Any) -> Any:
        """As of any list."""
        return self._own(super().pop(*index))  # type: ignore[misc]


class _Values(ValuesView[Any]):
    def __reversed__(self: Any) -> Iterator[Any]:
        return (self._mapping[key] for key in reversed(self._mapping))


class _Items(ItemsView[Any, Any]):
    def __reversed__(self: Any) -> Iterator[Any]:
        return ((key, self._mapping[key]) for key in reversed(self._mapping))


class _Mapping(_Lazy):
    def __getitem__(self, key: Any) -> Any:
        return self._own(super().__getitem__(key))  # type: ignore[misc]

    def __iter__(self) -> Iterator[Any]:  # defined, so that `dict(self)` calls `__getitem__` for each key
        return super().__iter__()  # type: ignore[misc, no-any-return]

    def __or__(self, other: Any) -> Any:
        return self._copied() | other

    def get(self, key: Any, default: Any = None) -> Any:
        """As of any dict."""
        return self._own(super().get(key, default))  # type: ignore[misc]

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As of any dict."""
        return self._own(super().setdefault(key, default))  # type: ignore[misc]

    def pop(self, *arguments: Any, **named: Any) -> Any:
        """As of any dict."""
        return self._own(super().pop(*arguments, **named))  # type: ignore[misc]

    def popitem(self, *arguments: Any, **named: Any) -> Any:
        """As of any dict."""
        key, item = super().popitem(*arguments, **named)  # type: ignore[misc]
        return key, self._own(item)

    def values(self) -> Any:
        """As of any dict."""
        return _Values(self)  # type: ignore[arg-type]

    def items(self) -> Any:
        """As of any dict."""
        return _Items(self)  # type: ignore[arg-type]

    def copy(self) -> Any:
        """As of any dict."""
        return self._copied()

    def _copied(self) -> Any:
        content = {key: self[key] for key in self}
        if isinstance(self, defaultdict):
            return defaultdict(self.default_factory, content)
        return OrderedDict(content) if isinstance(self, OrderedDict) else content


class _List(_Changeable, list):  # type: ignore[type-arg]
    pass


class _Tuple(_Sequence, tuple):  # type: ignore[type-arg]
    pass


class _Deque(_Changeable, deque):  # type: ignore[type-arg]
    def popleft(self) -> Any:
        """As of any deque."""
        return self._own(super().popleft())


class _Dict(_Mapping, dict):  # type: ignore[type-arg]
    pass


class _Ordered(_Mapping, OrderedDict):  # type: ignore[type-arg]
    pass


class _Default(_Mapping, defaultdict):  # type: ignore[type-arg]
    pass


# Subclasses come before their base classes.
_KINDS: dict[Any, Any] = {
    OrderedDict: _Ordered,
    defaultdict: _Default,
    dict: _Dict,
    list: _List,
    tuple: _Tuple,
    deque: _Deque,
}
for _kind, _made in _KINDS.items():
    _made.__name__ = _kind.__name__  # shown by some representations
