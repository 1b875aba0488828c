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
        copies: Tensors as large as all parameters that are held meanwhile, at most.
        only: In which case it is due, in words, if not at each event.
        each: What it is due for each of, such as "class", if not once.

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
    """Forward and backward passes that every event takes.

    Example:
        >>> least_passes([Price(forward=1), Price(forward=1, only="at the first event")])
        (1, 0)
    """
    due = [item for item in price if not item.only and not item.each]
    return sum(item.forward for item in due), sum(item.backward for item in due)


def most_passes(price: Iterable[Price]) -> tuple[float, float]:
    """Forward and backward passes that no event exceeds; infinite if there is no telling how often an item is due.

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
