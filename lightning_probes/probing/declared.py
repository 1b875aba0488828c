"""The declarations of a callback, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_probes.probing.price import Price
from lightning_probes.reporting.readings import Reading


class Declared:
    """The declarations of a callback: the cost of an event, and how to read its results."""

    @property
    def price(self) -> Sequence[Price] | None:
        """The cost of one event with these arguments, item by item; None if it is not declared.

        A constant price is a class attribute: `price = (Price(forward=1),)`.
        """
        return None

    @property
    def readings(self) -> Mapping[str, Reading]:
        """How to read each flag (`"flag/<key>"`) and each headline number, by relative key or glob.

        Usually a class attribute.
        """
        return {}
