"""What a callback says of itself, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_probes.probing.price import Price
from lightning_probes.reporting.readings import Reading


class Declared:
    """What a callback says of itself: what an event costs, and how to read what it reports."""

    @property
    def price(self) -> Sequence[Price] | None:
        """What one event costs with these arguments, item by item; None if nothing is said.

        A constant price is a class attribute: `price = (Price(forward=1),)`.
        """
        return None

    @property
    def readings(self) -> Mapping[str, Reading]:
        """How to read each flag (`"flag/<key>"`) and each number that is no detail, by relative key or glob.

        Mostly a class attribute.
        """
        return {}
