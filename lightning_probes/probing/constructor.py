"""Constructors that take shared arguments by `**`, with a signature that lists each of them.

Users, editors and LightningCLI read this signature.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any, ClassVar, cast, get_args, get_origin

from typing_extensions import Self, get_type_hints, is_typeddict

from lightning_probes.probing.arguments import DEFAULTS, ORDER, AnyData, ProbeArguments
from lightning_probes.probing.configured import ConfiguredSignature, is_ours
from lightning_probes.probing.schedules import Schedule
from lightning_probes.probing.values import in_short


class Constructed:
    """A callback whose constructor takes shared arguments, as in `def __init__(self, **shared: Unpack[LossArguments])`.

    Its signature has each of these arguments, with the default of the class. Other arguments raise an error. If
    `**shared` has no type, the constructor takes the arguments of its base class.

    Attributes:
        defaults: The shared arguments whose defaults differ from those of the base class.
    """

    defaults: ClassVar[ProbeArguments[AnyData]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" not in vars(cls):
            _forward_to_the_class_above(cls)
        parameters = _parameters(cls, cls.__mro__)
        for name in vars(cls).get("defaults", {}):
            if name not in {*ORDER, *(each.name for each in parameters)}:
                raise TypeError(f"{cls.__name__}.defaults has {name!r}, which is none of {', '.join(ORDER)}")
        _declare(cls, parameters)

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Check here for arguments that this class does not take, because its base class may take them."""
        _check_keywords(cls, keywords)
        return super().__new__(cls)

    @classmethod
    def _complete(cls, given: Mapping[str, object]) -> ProbeArguments[AnyData]:
        """All shared arguments: the given ones, and defaults for the others."""
        complete = cast(ProbeArguments[AnyData], {**_defaults(cls), **given})
        if missing := [name for name in ORDER if name not in complete]:
            raise TypeError(f"{cls.__name__} needs {missing[0]}=: pass it, or put it into {cls.__name__}.defaults")
        return complete

    def __repr__(self) -> str:
        """The call that creates such a callback, without arguments that are None by default."""
        parameters = inspect.signature(type(self)).parameters
        shown = [
            f"{name}={in_short(value)}"
            for name, value in arguments_of(self).items()
            if value is not None or parameters[name].default is not None
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def arguments_of(callback: Any) -> dict[str, Any]:
    """The arguments of a callback's constructor by name, if the callback keeps them as attributes of that name."""
    objective = getattr(callback, "objective", None)
    found = {
        name: getattr(callback, name, getattr(objective, name, Parameter.empty))
        for name in inspect.signature(type(callback)).parameters
    }
    return {name: value for name, value in found.items() if value is not Parameter.empty}


def _defaults(cls: type) -> dict[str, Any]:
    """The default of each shared argument that has one in a class."""
    return {**DEFAULTS, **_merged(cls.__mro__)}


def _merged(classes: Sequence[type]) -> dict[str, Any]:
    """The `defaults` of several classes; those of the first class win."""
    own = [vars(each).get("defaults", {}) for each in reversed(classes)]
    return {name: value for defaults in own for name, value in defaults.items()}


def _forward_to_the_class_above(cls: Any) -> None:
    """Give a class its own constructor, because it needs its own signature."""

    def __init__(self: Any, *arguments: Any, **keywords: Any) -> None:
        super(cls, self).__init__(*arguments, **keywords)

    __init__.__module__, __init__.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    cls.__init__ = __init__


def _declare(cls: Any, parameters: list[Parameter]) -> None:
    """Set the signature of a class and of its constructor. LightningCLI reads the constructor's."""
    cls.__signature__ = inspect.Signature(parameters)
    ours = [base for base in cls.__mro__ if "__signature__" in vars(base) and is_ours(base)]
    checked = {name for base in ours for name in inspect.signature(base).parameters}
    configured = inspect.Signature([each.replace(default=_as_configured(each.default)) for each in parameters])
    cls.__init__.__signature__ = ConfiguredSignature.of(configured, checked)


def _parameters(cls: type, classes: Sequence[type]) -> list[Parameter]:
    """The parameters of the first constructor among `classes`, with its `**` replaced by the arguments for `cls`."""
    owner, *above = itertools.dropwhile(lambda each: "__init__" not in vars(each), classes)
    if owner is object:
        return []
    if "__signature__" in vars(owner):
        return [*inspect.signature(owner).parameters.values()]
    _, *own = _signature(vars(owner)["__init__"]).parameters.values()
    if not own or own[-1].kind is not Parameter.VAR_KEYWORD:
        return own
    *own, rest = own
    types = _unpacked(rest.annotation)
    if types is None:
        further, source = _parameters(cls, above), next(each for each in above if "__init__" in vars(each))
        defaults = _merged(cls.__mro__[: cls.__mro__.index(source)])
    else:
        further = [Parameter(name, Parameter.KEYWORD_ONLY, annotation=types[name]) for name in ORDER if name in types]
        defaults = _defaults(cls)
    named = [each for each in own if each.kind is not Parameter.VAR_POSITIONAL]
    if len(named) == len(own):  # positional arguments are not passed on
        further = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in further]
    taken = {each.name for each in named}
    passed_on = [
        each.replace(default=defaults.get(each.name, each.default)) for each in further if each.name not in taken
    ]
    return sorted([*named, *passed_on], key=lambda each: each.kind)


def _signature(init: Any) -> inspect.Signature:
    try:
        return inspect.signature(init, eval_str=True)
    except Exception:  # a name that exists only for type checkers
        return inspect.signature(init)


def _unpacked(annotation: Any) -> dict[str, Any] | None:
    """Names and types of the arguments in `Unpack[...]`; None for another annotation."""
    for unpacked in get_args(annotation):
        kind = get_origin(unpacked) or unpacked
        if is_typeddict(kind):
            variables = getattr(kind, "__parameters__", ())
            types = dict(zip(variables, get_args(unpacked) or [each.__default__ for each in variables], strict=True))
            return {name: types.get(hint, hint) for name, hint in get_type_hints(kind).items()}
    return None


class _Configured(dict[str, Any]):
    """A schedule in the form of LightningCLI's configuration. Its repr is that of the schedule."""

    __slots__ = ()  # LightningCLI would read the __dict__ of an object instead

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self["init_args"].items())
        return f"{self['class_path'].rpartition('.')[2]}({arguments})"


def _as_configured(default: Any) -> Any:
    """A default in the form of a configuration, because LightningCLI can't write a schedule object to a file."""
    if isinstance(default, (list, tuple)):
        return [*map(_as_configured, default)] if any(isinstance(each, Schedule) for each in default) else default
    if not isinstance(default, Schedule) or not dataclasses.is_dataclass(default):
        return default
    kind = type(default)
    room = "lightning_probes" if is_ours(kind) else kind.__module__
    arguments = {field.name: getattr(default, field.name) for field in dataclasses.fields(default) if field.init}
    return _Configured(class_path=f"{room}.{kind.__qualname__}", init_args=arguments)


def _check_keywords(cls: type, keywords: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    for name in keywords:
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, 1)
            what = f"did you mean {close[0]}=?" if close else f"it takes {', '.join(parameters)}"
            raise TypeError(f"{cls.__name__} takes no {name}=: {what}")
