"""Claim: a wrong argument raises in the constructor, with a message that names the argument."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.testing.subject import Subject
from lightning_probes.testing.zoo import Case


def refusing(subject: Subject, case: Case) -> None:
    """The constructor raises for a useless object as any argument, for nan as a number, and for an unknown choice."""
    for name, parameter in subject.takes.items():
        for value, what in _wrong(name, parameter):
            error = _error_of(subject, case, name, value)
            found = "raises no error" if error is None else f"raises {type(error).__name__}: {error}"
            named = isinstance(error, (ValueError, TypeError, MisconfigurationException)) and name in str(error)
            assert named, (
                f"{name}={what} {found}. Raise a ValueError in __init__ that names the argument, e.g. with "
                "check_number, check_choice or check_switch of lightning_probes.probing"
            )


def _error_of(subject: Subject, case: Case, name: str, value: object) -> Exception | None:
    try:
        subject.make(case, **{name: value})
    except Exception as error:  # any error of the constructor
        return error
    return None


def _wrong(name: str, parameter: inspect.Parameter) -> Iterator[tuple[object, str]]:
    # Any object may be iterable, and so may be data. Whether it is iterable is known only when it is read.
    yield (3.5, "3.5") if name == "data" else (object(), "object()")
    default = parameter.default
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        yield math.nan, "nan"
    if typing.get_origin(parameter.annotation) is typing.Literal:
        yield "no such choice", "'no such choice'"
