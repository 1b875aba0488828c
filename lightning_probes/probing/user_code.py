"""What the user's code raises while a probe runs it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.run.processes import is_out_of_memory

_MOST = 300  # characters of an object
_MOST_OF_A_SENTENCE = 1000


class UserCodeError(RuntimeError):
    """An error of the user's code in a pass, which it was raised from.

    Attributes:
        argument: What takes the place of that code.
    """

    def __init__(self, error: Exception, argument: str) -> None:
        super().__init__(told(error))
        self.argument = argument


@contextmanager
def user_code(argument: str) -> Iterator[None]:
    """Tell errors of the user's code from those of a probe.

    Raises:
        UserCodeError: For any error of the block, but for what is to pass as it is (`is_said`).
    """
    try:
        yield
    except Exception as error:
        if is_said(error):
            raise
        raise UserCodeError(error, argument) from error


def is_said(error: Exception) -> bool:
    """Whether an error is to pass as it is: a sentence of our own, lack of memory, or how a W&B agent stops a trial."""
    said = isinstance(error, (MisconfigurationException, UserCodeError))
    return said or is_out_of_memory(error) or (type(error) is Exception and not error.args)


def is_from_autograd(error: Exception) -> bool:
    """Whether an error was raised while a result of the user's code was differentiated, not by a hook of our own."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours_or_autograd = [module for module in modules if module.startswith(("torch.autograd", "lightning_probes"))]
    return bool(ours_or_autograd) and ours_or_autograd[-1].startswith("torch")


def told(error: BaseException) -> str:
    """Kind and words of an error, for a sentence of our own."""
    return brief(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def brief_sentence(error: BaseException) -> str:
    """Kind and words of an error that may be a sentence of our own with something of the user's in it."""
    return brief(f"{type(error).__name__}: {error}", _MOST_OF_A_SENTENCE)


def brief(content: object, most: int = _MOST) -> str:
    """What a user's object says of itself, on one line and not too long.

    Example:
        >>> brief("no    such luck")
        'no such luck'
    """
    text = " ".join(str(content).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
