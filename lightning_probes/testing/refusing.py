"""Claim: an argument that can't be right is refused where it is given, by a sentence that names it."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.testing.subject import Subject
from lightning_probes.testing.zoo import Case


def refusing(subject: Subject, case: Case) -> None:
    """Each argument is tried with an object of no use, a number also with nan, a choice also with no such word."""
    for name, parameter in subject.takes.items():
        for value, what in _wrong(name, parameter):
            error = _error_of(subject, case, name, value)
            found = "is taken without a word" if error is None else f"ends in {type(error).__name__}: {error}"
            named = isinstance(error, (ValueError, TypeError, MisconfigurationException)) and name in str(error)
            assert named, (
                f"{name}={what} {found}. Raise ValueError in __init__ that names the argument, e.g. by check_number, "
                "check_choice or check_switch of lightning_probes.probing"
            )


def _error_of(subject: Subject, case: Case, name: str, value: object) -> Exception | None:
    try:
        subject.make(case, **{name: value})
    except Exception as error:  # whatever a stranger's constructor raises
        return error
    return None


def _wrong(name: str, parameter: inspect.Parameter) -> Iterator[tuple[object, str]]:
    # Whatever can be iterated over may be data, and only then shows that it can.
    yield (3.5, "3.5") if name == "data" else (object(), "object()")
    default = parameter.default
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        yield math.nan, "nan"
    if typing.get_origin(parameter.annotation) is typing.Literal:
        yield "no such choice", "'no such choice'"
