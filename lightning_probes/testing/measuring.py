"""The methods with which each kind of callback measures, and how to wrap them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# The methods of a probe, a monitor and an intervention.
_METHODS = ("measure", "before_step", "after_step", "intervene")
Method = Callable[[Any], Any]


def methods_of(callback: Any) -> list[str]:
    """Names of the methods that the callback's own class defines."""
    own = [name for name in _METHODS if hasattr(callback, name)]
    return [name for name in own if not getattr(type(callback), name).__module__.startswith("lightning_probes.probing")]


def put_around(callback: Any, around: Callable[[Method, Any], Any]) -> None:
    """Wrap each of these methods: calling it calls `around(method, moment)`, where `moment` may also be a view."""

    def surrounded(method: Method) -> Method:
        return lambda moment: around(method, moment)

    for name in methods_of(callback):
        setattr(callback, name, surrounded(getattr(callback, name)))
