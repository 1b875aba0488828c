"""What an event costs, as data: passes over the probe samples, and memory in copies of the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """One item of what an event costs. The items of a callback add up.

    Args:
        forward: Forward passes over the samples of each probe set.
        backward: Backward passes over them.
        products: Hessian-vector products over them, at most: each takes up to one forward and two backward passes.
        copies: The largest number of tensors of the size of all parameters that are in memory at once.
        only: When this item is due, in words, if not at each event.
        each: If this item is due more than once: once for each what, for example "class".

    Example:
        >>> Price(forward=1, backward=1)
        Price(forward=1, backward=1, products=0, copies=0, only='', each='')
    """

    forward: float = 0
    backward: float = 0
    products: float = 0
    copies: float = 0
    only: str = ""
    each: str = ""


def least_passes(price: Iterable[Price]) -> tuple[float, float]:
    """The number of forward and backward passes that every event takes at least.

    Example:
        >>> least_passes([Price(forward=1), Price(forward=1, only="at the first event")])
        (1, 0)
    """
    due = [item for item in price if not item.only and not item.each]
    return sum(item.forward for item in due), sum(item.backward for item in due)


def most_passes(price: Iterable[Price]) -> tuple[float, float]:
    """The largest number of forward and backward passes of an event; infinite for an item with `each`.

    Example:
        >>> most_passes([Price(forward=1), Price(backward=1, each="class")])
        (1, inf)
    """
    items = list(price)
    forward = [item.forward + item.products for item in items]
    backward = [item.backward + 2 * item.products for item in items]
    times = [float("inf") if item.each else 1 for item in items]
    return _total(forward, times), _total(backward, times)


def _total(passes: list[float], times: list[float]) -> float:
    return sum(number * often for number, often in zip(passes, times, strict=True) if number)
