"""Replacements in a twin for objects around the module: optimizers that do not step, loggers that do not log."""

from __future__ import annotations

import io
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from os import PathLike
from typing import Any

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_probes.probing.isolation.belongings import without_finalizer
from lightning_probes.probing.isolation.copying import COPY, DATA, Copier
from lightning_probes.probing.isolation.lazy import lazy_state
from lightning_probes.probing.origin import LIGHTNING, comes_from, names_in

# `stand_in` returns this for a part of the framework, which gets a read-only view like the Trainer.
PART = object()

# Objects of these packages are immutable after their creation, or are compiled code.
_SHARED = ("torch._dynamo", "torch._inductor", "torch.fx", "tokenizers", "pyarrow", "datasets")
# Classes of Lightning whose objects hold the user's objects.
_DATA = frozenset({"LightningDataModule", "CombinedLoader"})
_COPIED = frozenset({"Callback", "_ModeIterator", "_IndexBatchSamplerWrapper"})
_PER_PARAMETER = ("param_groups", "state")  # of an optimizer


def stand_in(value: Any, copier: Copier) -> Any:
    """The replacement in a twin for an object of its module; `COPY` or `DATA` for a copy, `PART` for a view.

    An array too large to copy is shared as a read-only array. Loggers, progress bars and probes ignore all calls.
    Optimizers can be read, but do not step.

    Args:
        value: The object.
        copier: The twin's copier, which has the replacements of the parameters.
    """
    if isinstance(value, Optimizer):
        return _shadow(value, copier)
    if isinstance(value, DataLoader):
        copier.memo[id(value._iterator)] = None  # iterating over the copy starts its own workers
        return DATA
    if isinstance(value, np.ndarray) and not copier.fits(value.nbytes):
        return _read_only(value)
    if isinstance(value, (nn.Module, Tensor, dict)):
        return COPY
    kind = type(value)
    if isinstance(value, types.FunctionType):
        return ignore if comes_from(value, ("wandb",)) else COPY  # a hook of `wandb.watch`
    if _is_told(kind):
        return Muted(value)
    if comes_from(kind, _SHARED):
        return value
    names = names_in(kind)
    if isinstance(value, (Dataset, Sampler)) or not names.isdisjoint(_DATA):
        return DATA
    is_part = comes_from(kind) and not is_dataclass(value)
    return PART if is_part and names.isdisjoint(_COPIED) else COPY


def last_resort(value: Any, path: str) -> Any:
    """The replacement in a twin for an object that can't be copied.

    Reading from an iterator would remove items from training, so it is an error. Writes to a file are dropped. Other
    objects (a lock, a socket, a process group) are shared.
    """
    if isinstance(value, io.IOBase) and not value.closed and value.writable():
        return io.StringIO() if isinstance(value, io.TextIOBase) else io.BytesIO()
    if isinstance(value, Iterator):
        return _Unreadable(type(value).__name__, path)
    return value


class Muted:
    """A read-only stand-in for an object such as a logger: plain attributes can be read, and calls do nothing.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> logger = Muted(CSVLogger("logs", name="run"))
        >>> logger.log_metrics({"loss": 1.0}), logger.name, isinstance(logger, CSVLogger)
        (None, 'run', True)
    """

    def __init__(self, muted: Any) -> None:
        self.__dict__["_muted"] = muted

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # user code may ask isinstance(self.logger, WandbLogger)
        return type(self.__dict__["_muted"])

    def __getattr__(self, name: str) -> Any:
        return _muted(getattr(self.__dict__["_muted"], name))

    def __getitem__(self, key: Any) -> Any:
        return _muted(self.__dict__["_muted"][key])

    def __iter__(self) -> Iterator[Any]:
        return map(_muted, self.__dict__["_muted"])

    def __len__(self) -> int:
        return len(self.__dict__["_muted"])

    def __bool__(self) -> bool:  # `if self.logger:` must work without a length
        return bool(self.__dict__["_muted"])

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def __enter__(self) -> Muted:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def ignore(*_: Any, **__: Any) -> None:
    """Do nothing."""


def _muted(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, type(None), PathLike)) else Muted(value)


class _Unreadable:
    """Replaces an iterator that can't be copied."""

    def __init__(self, kind: str, path: str) -> None:
        self.kind, self.path = kind, path

    def __iter__(self) -> _Unreadable:
        return self

    def __next__(self) -> Any:
        raise MisconfigurationException(
            f"computing the loss reads from {self.path or 'an iterator'}, a {self.kind} that can't be copied, and its "
            "items would be missing in training: pass loss_fn=lambda module, batch: ... that does not read from it"
        )

    send = __next__


def _shadow(optimizer: Any, copier: Copier) -> Any:
    """An optimizer with the same settings and state on the twin's parameters, which never steps.

    Its state is copied only when it is read, because it is as large as the parameters and rarely used.
    """
    shadow: Any = object.__new__(without_finalizer(type(optimizer)))
    copier.memo[id(optimizer)] = shadow
    copier.made.append((optimizer, shadow))
    own = {name: item for name, item in vars(optimizer).items() if name not in ("step", "zero_grad")}
    if "_optimizer" in own:  # Lightning's wrapper, which is an optimizer by type only
        inner = copier(own["_optimizer"])
        vars(shadow).update({**own, "_optimizer": inner, "_strategy": None}, step=ignore, zero_grad=ignore)
        return shadow
    groups = [
        {name: copier(item, f"optimizer.{name}") for name, item in group.items()} for group in own["param_groups"]
    ]
    state = {copier(p, "optimizer.state"): values for p, values in own["state"].items()}
    shadowed = {name: copier(item, f"optimizer.{name}") for name, item in own.items() if name not in _PER_PARAMETER}
    later = copier.later
    assert later is not None
    shadowed.update(param_groups=groups, state=lazy_state(state, lambda values: later(values, "optimizer.state")))
    vars(shadow).update(shadowed, step=ignore, zero_grad=ignore)
    copier.made += [(None, changeable) for changeable in (groups, *groups, shadowed["state"])]
    return shadow


def _read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _is_told(kind: type) -> bool:
    """Whether training only calls objects of a class and uses no results: loggers, progress bars, probes."""
    if kind.__name__ == "SummaryWriter" or comes_from(kind, ("wandb",)):
        return True
    names = names_in(kind, (*LIGHTNING, "lightning_probes"))
    return not names.isdisjoint({"Logger", "ProgressBar", "Scheduled"})
