"""Saying a thing once."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


class Speaker:
    """Says each thing once, in the first process, with the name of who says it.

    Args:
        name: Who speaks.

    Example:
        >>> Speaker("Sharpness 'sharpness'").warn("the stability threshold of Lion is not known")
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.said: set[str] = set()

    def info(self, message: str) -> None:
        """Say something worth knowing."""
        if self._is_new(message):
            rank_zero_info(f"{self.name}: {message}")

    def warn(self, message: str) -> None:
        """Say something worth acting on."""
        if self._is_new(message):
            rank_zero_warn(f"{self.name}: {message}")

    def _is_new(self, message: str) -> bool:
        new = message not in self.said
        self.said.add(message)
        return new
