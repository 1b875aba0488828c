"""Room for long chains of objects, each held by the one before, which a copy follows by calls inside calls."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

# Calls inside calls, for each of which the smallest stack of a thread in use (8 MB) has room.
_MOST = 10_000


class CopyError(TypeError):
    """Something can't be copied and must not be shared."""


@contextmanager
def deeper() -> Iterator[None]:
    """Allow as many calls inside calls as the stack has room for, unless more are allowed already."""
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
    """Whether an error comes of this code calling itself, and not of some other, such as a `__getattr__`."""
    frames = [*traceback.walk_tb(error.__traceback__), *traceback.walk_stack(sys._getframe())]
    return sum(frame.f_code is code for frame, _ in frames) > len(frames) / 20


def too_deep(value: Any, path: str) -> CopyError:
    """The error for a chain that is too long."""
    return CopyError(
        f"the {type(value).__name__} at {path[:80]!r} is part of a chain of objects too long to be followed: hold them "
        f"in one list, or call sys.setrecursionlimit with more than {_MOST}"
    )
