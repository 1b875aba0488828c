"""The signature of a constructor that LightningCLI reads, where it differs from the one that users and editors read.

LightningCLI refuses a value of another type with a long text that hides which argument is wrong. It is shown wider
types here, if the constructor itself checks the argument. It still converts what it can to the narrow types, and
passes other values to the constructor, whose error says what is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self, TypeAliasType

_NUMBERS = (int, float, bool, type(None))
_PLAIN = (str, Path, *_NUMBERS)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class ConfiguredSignature(inspect.Signature):
    """The signature of a constructor for LightningCLI. A pickle holds only what it is made of."""

    __slots__ = ("_made_of",)
    _made_of: tuple[inspect.Signature, Collection[str]]

    @classmethod
    def of(cls, signature: inspect.Signature, checked: Collection[str]) -> Self:
        """The signature of a constructor, from that of its class and the names of arguments that it checks."""
        parameters = [
            _checked(each) if each.name in checked else each.replace(annotation=_as_wide(each.annotation))
            for each in signature.parameters.values()
        ]
        first = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        # It passes arguments by name, and one without a default may not follow one that gets None here.
        named = [each if each.kind in _VARIABLE else each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
        made = cls([first, *named], return_annotation=None)
        made._made_of = (signature, checked)
        return made

    def __reduce__(self) -> Any:
        return type(self).of, self._made_of  # an alias of a type can't be pickled


def checks_its_arguments(cls: Any) -> Any:
    """Let LightningCLI pass each value to the constructor of a class, which checks all its arguments."""
    signature = inspect.signature(cls, eval_str=True)
    cls.__signature__ = signature
    cls.__init__.__signature__ = ConfiguredSignature.of(signature, [*signature.parameters])
    return cls


def is_ours(cls: type) -> bool:
    """Whether a class belongs to this package."""
    return cls.__module__.startswith("lightning_probes.")


def _as_wide(annotation: Any) -> Any:
    """The same type, but with any callable in place of a function type, and any dataset in place of `Dataset[...]`.

    Otherwise LightningCLI would refuse functions that are not annotated with these types, and arguments of a subclass
    of `Dataset[Any]`. A path is text in a config; `PathLike` would make text of every other value.
    """
    origin = get_origin(annotation)
    if origin is Callable:
        return Callable[..., Any]
    if origin in (Union, UnionType):
        members = get_args(annotation)
        kept = [each for each in members if get_origin(each) is not PathLike or str not in members]
        return _either(*map(_as_wide, kept))
    if origin in (Sequence, Mapping):
        return origin[tuple(map(_as_wide, get_args(annotation)))]
    return origin if origin in (DataLoader, Dataset) else annotation


def _checked(parameter: Parameter) -> Parameter:
    """A parameter that also takes what the constructor refuses, and None where a value is missing."""
    annotation = _as_checked(parameter.annotation)
    if parameter.default is not Parameter.empty:
        return parameter.replace(annotation=annotation)
    return parameter.replace(annotation=_either(annotation, None), default=None)


def _as_checked(annotation: Any) -> Any:
    """A type that also takes values which the constructor refuses. `--help` shows the narrow type where it can."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(map(_is_plain, members)):
        refused = _either(str, *_NUMBERS, Sequence[_either(str, *_NUMBERS)])  # type: ignore[misc]
        return _either(_as_wide(annotation), _alias("Refused", refused))
    if any(get_origin(each) is Sequence for each in members):  # `--layers+=name` needs a sequence that is no alias
        return _either(annotation, _alias("Refused", Any))
    narrow = _either(*(each for each in members if each is not type(None)))
    wide = _alias(_shown(narrow), _either(narrow, Any))
    return wide if narrow == annotation else _either(wide, None)


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) is Sequence:
        return all(map(_is_plain, get_args(annotation)))
    return get_origin(annotation) is Literal or annotation in _PLAIN


def _either(*types: Any) -> Any:
    return Union[types]  # noqa: UP007


def _alias(name: str, annotation: Any) -> Any:
    return TypeAliasType(name, annotation)


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else inspect.formatannotation(annotation)
