"""A higher recursion limit for copying long chains of objects, such as linked lists."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

# Recursion depth that fits into the smallest common stack of a thread (8 MB).
_MOST = 10_000


class CopyError(TypeError):
    """An object can't be copied and must not be shared."""


@contextmanager
def deeper() -> Iterator[None]:
    """Raise the recursion limit to what the stack allows, unless it is higher already."""
    before = sys.getrecursionlimit()
    if before >= _MOST:
        yield
        return
    sys.setrecursionlimit(_MOST)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def is_nesting(error: RecursionError, code: CodeType) -> bool:
    """Whether the recursion is that of this code, and not of other code such as a `__getattr__`."""
    frames = [*traceback.walk_tb(error.__traceback__), *traceback.walk_stack(sys._getframe())]
    return sum(frame.f_code is code for frame, _ in frames) > len(frames) / 20


def too_deep(value: Any, path: str) -> CopyError:
    """The error for a chain of objects that is too long."""
    return CopyError(
        f"the {type(value).__name__} at {path[:80]!r} is part of a chain of objects too long to be followed: hold them "
        f"in one list, or call sys.setrecursionlimit with more than {_MOST}"
    )
