"""The methods in which a callback of each kind measures, to put something around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Of a probe, a monitor and an intervention.
_METHODS = ("measure", "before_step", "after_step", "intervene")
Method = Callable[[Any], Any]


def methods_of(callback: Any) -> list[str]:
    """Names of those methods that its class has, and does not merely inherit from its kind."""
    own = [name for name in _METHODS if hasattr(callback, name)]
    return [name for name in own if not getattr(type(callback), name).__module__.startswith("lightning_probes.probing")]


def put_around(callback: Any, around: Callable[[Method, Any], Any]) -> None:
    """Have each of those methods called by `around(method, moment)`, with the view or moment that it is given."""

    def surrounded(method: Method) -> Method:
        return lambda moment: around(method, moment)

    for name in methods_of(callback):
        setattr(callback, name, surrounded(getattr(callback, name)))
