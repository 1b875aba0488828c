"""Messages that are printed once."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


class Speaker:
    """Prints each message once, in the first process, after the name of the probe.

    Args:
        name: The class and name of the probe.

    Example:
        >>> Speaker("Sharpness 'sharpness'").warn("the stability threshold of Lion is not known")
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.said: set[str] = set()

    def info(self, message: str) -> None:
        """Print a message for information."""
        if self._is_new(message):
            rank_zero_info(f"{self.name}: {message}")

    def warn(self, message: str) -> None:
        """Print a warning."""
        if self._is_new(message):
            rank_zero_warn(f"{self.name}: {message}")

    def _is_new(self, message: str) -> bool:
        new = message not in self.said
        self.said.add(message)
        return new
