"""Which arguments a callback takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping


def arguments_of(kind: type) -> Mapping[str, inspect.Parameter]:
    """The named arguments of a class, those that it hands on to its base as `**kwargs` included.

    Example:
        >>> from lightning_probes import FisherTrace
        >>> "labels" in arguments_of(FisherTrace), "seed" in arguments_of(FisherTrace)
        (True, True)
    """
    found: dict[str, inspect.Parameter] = {}
    for signature in _signatures(kind):
        for name, parameter in signature.parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self":
                found.setdefault(name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            break
    return found


def _signatures(kind: type) -> list[inspect.Signature]:
    """That of the class, which may state it apart, and those of the constructors that it may hand arguments on to."""
    own = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base) and base is not object]
    return [inspect.signature(kind), *map(inspect.signature, own[1:])]
