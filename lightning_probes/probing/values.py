"""Checks of arguments, so that a wrong one raises in the constructor, with its name, and not after training."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
from torch import Tensor, nn

from lightning_probes.probing.user_code import brief

_MOST = 2**63  # PyTorch accepts smaller numbers only


def check_whole_number(name: str, value: object, least: int = 0, optional: bool = False) -> None:
    """Check that a value is a whole number of at least `least`, or None with `optional=True`.

    Raises:
        ValueError: If it is not. The message names the argument, as with the other checks.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < _MOST:
        return
    if value is not None or not optional:
        refuse(name, f"a whole number of at least {least}", value, optional)


def check_number(
    name: str, value: object, least: float = -math.inf, above: float = -math.inf, optional: bool = False
) -> None:
    """Check that a value is a finite number of at least `least` and above `above`, or None with `optional=True`."""
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if least <= number < _MOST and number > max(above, -_MOST):
            return
    if value is not None or not optional:
        limits = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
        refuse(name, f"a finite number{limits}", value, optional)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Check that a value is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        refuse(name, f"one of {', '.join(map(repr, choices))}", value)


def check_choices(name: str, value: object, choices: Collection[str]) -> None:
    """Check that a value is a list or tuple of at least one of `choices`."""
    if not isinstance(value, (list, tuple)) or not value or any(word not in choices for word in value):
        example = f"({next(iter(choices))!r},)"
        refuse(name, f"a list or tuple, such as {example}, of {', '.join(map(repr, choices))}", value)


def check_switch(name: str, value: object) -> None:
    """Check that a value is True or False."""
    if not isinstance(value, bool):
        refuse(name, "True or False", value)


def check_names(name: str, value: object) -> None:
    """Check that a value is a name or glob, or a list of at least one of these."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(each, str) and each for each in names):
        refuse(name, "at least one name or glob of layers", value)


def check_function(name: str, value: object) -> None:
    """Check that a value is a function or None."""
    if value is not None and (not callable(value) or isinstance(value, type)):
        refuse(name, "a function of (module, batch)", value, optional=True, imported=True)


def check_all(name: str, values: object, fits: Callable[[Any], bool], wanted: str) -> None:
    """Check that a value fits, or is a list or tuple of at least one value that fits."""
    listed = values if isinstance(values, (list, tuple)) else [values]
    if not listed or not all(map(fits, listed)):
        refuse(name, wanted, values, imported=True)


def refuse(name: str, wanted: str, value: object, optional: bool = False, imported: bool = False) -> NoReturn:
    """Raise the error for an argument that is not what is wanted.

    With `imported=True`, text may be meant as an import path, as in a config, and the error says why it names nothing.
    """
    reason = _why_not_imported(value) if imported else ""
    if isinstance(value, Real) and float(value) >= _MOST:
        wanted += " and below 2**63"
    raise ValueError(f"{name} must be {wanted}{' or None' if optional else ''}, got {brief(repr(value))}{reason}")


def _why_not_imported(value: object) -> str:
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) < 2 or not all(map(str.isidentifier, parts)):
        return ""
    try:
        getattr(importlib.import_module(".".join(parts[:-1])), parts[-1])
    except Exception as error:
        return f" ({brief(str(error))})"
    return ""


def in_short(value: object) -> str:
    """A short text for a value: type and size of a large value, the path of a function.

    Example:
        >>> in_short([{"weight": 0.1}, np.zeros((2, 3)), max, 0.5])
        '[<dict of 1 entries>, <ndarray of shape (2, 3)>, builtins.max, 0.5]'
    """
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"<{kind} of {len(value)} entries>"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"<{kind} of shape {tuple(value.shape)}>"
    if isinstance(value, list):
        return f"[{', '.join(map(in_short, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(in_short, value))}{',' * (len(value) == 1)})"
    if inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, nn.Module):
        return f"<{kind}>"
    return f"<{kind}>" if type(value).__repr__ is object.__repr__ else brief(repr(value), 100)
