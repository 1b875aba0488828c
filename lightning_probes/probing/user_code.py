"""Errors that the user's code raises while a probe runs it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.processes import is_out_of_memory

_MOST = 300  # characters of an object
_MOST_OF_A_SENTENCE = 1000


class UserCodeError(RuntimeError):
    """An error of the user's code in a pass. Its `__cause__` is the original error.

    Attributes:
        argument: The argument that replaces this code, such as "loss_fn".
    """

    def __init__(self, error: Exception, argument: str) -> None:
        super().__init__(error_text(error))
        self.argument = argument


@contextmanager
def user_code(argument: str) -> Iterator[None]:
    """Mark errors of the block as errors of the user's code.

    Raises:
        UserCodeError: For any error of the block, except those that stay as they are (`passes_unchanged`).
    """
    try:
        yield
    except Exception as error:
        if passes_unchanged(error):
            raise
        raise UserCodeError(error, argument) from error


def passes_unchanged(error: Exception) -> bool:
    """Whether an error stays as it is: an error of this package, out of memory, or a W&B agent's stop of a trial."""
    is_ours = isinstance(error, (MisconfigurationException, UserCodeError))
    return is_ours or is_out_of_memory(error) or (type(error) is Exception and not error.args)


def is_from_autograd(error: Exception) -> bool:
    """Whether an error was raised by autograd or the user's backward code, and not by a hook of this package."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours_or_autograd = [module for module in modules if module.startswith(("torch.autograd", "lightning_probes"))]
    return bool(ours_or_autograd) and ours_or_autograd[-1].startswith("torch")


def error_text(error: BaseException) -> str:
    """Type and message of an error, short enough to be part of a message of this package."""
    return brief(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def brief_sentence(error: BaseException) -> str:
    """Type and message of an error, which may itself be a message of this package with a user's error in it."""
    return brief(f"{type(error).__name__}: {error}", _MOST_OF_A_SENTENCE)


def brief(content: object, most: int = _MOST) -> str:
    """The text of an object on one line, shortened if it is long.

    Example:
        >>> brief("no    such luck")
        'no such luck'
    """
    text = " ".join(str(content).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
