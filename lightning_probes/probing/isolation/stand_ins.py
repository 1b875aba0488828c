"""What stands in a twin for the world around its module: optimizers that do not step, loggers that do not log."""

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

# What `stand_in` returns for a part of the framework, to be seen as the Trainer is: all to read, nothing to change.
PART = object()

_LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
# Objects of these packages are made once and read from then on, or are compiled code.
_SHARED = ("torch._dynamo", "torch._inductor", "torch.fx", "tokenizers", "pyarrow", "datasets")
# Classes of Lightning whose objects hold what is the user's.
_DATA = frozenset({"LightningDataModule", "CombinedLoader"})
_COPIED = frozenset({"Callback", "_ModeIterator", "_IndexBatchSamplerWrapper"})
_PER_PARAMETER = ("param_groups", "state")  # of an optimizer


def stand_in(value: Any, copier: Copier) -> Any:
    """What stands in a twin for an object that its module holds; `COPY` or `DATA` for a copy, `PART` for a view.

    An array too large to copy is shared for reading. Loggers, progress bars and probes swallow what they are told,
    optimizers can be read but do not step.

    Args:
        value: The object.
        copier: The twin's, which knows what stands for the parameters.
    """
    if isinstance(value, Optimizer):
        return _shadow(value, copier)
    if isinstance(value, DataLoader):
        copier.memo[id(value._iterator)] = None  # its workers are the user's: who iterates the copy starts others
        return DATA
    if isinstance(value, np.ndarray) and not copier.fits(value.nbytes):
        return _read_only(value)
    if isinstance(value, (nn.Module, Tensor, dict)):
        return COPY
    kind = type(value)
    if isinstance(value, types.FunctionType):
        return ignore if comes_from(value.__module__, ("wandb",)) else COPY  # a hook of `wandb.watch`
    if _is_told(kind):
        return Muted(value)
    if comes_from(kind.__module__, _SHARED):
        return value
    names = {base.__name__ for base in kind.__mro__ if comes_from(base.__module__, _LIGHTNING)}
    if isinstance(value, (Dataset, Sampler)) or not names.isdisjoint(_DATA):
        return DATA
    is_part = comes_from(kind.__module__, _LIGHTNING) and not is_dataclass(value)
    return PART if is_part and names.isdisjoint(_COPIED) else COPY


def last_resort(value: Any, path: str) -> Any:
    """What stands in a twin for an object that can't be copied.

    Reading from an iterator would take something away from training, so that is an error; what is written to a file is
    dropped; anything else (a lock, a socket, a process group) is shared.
    """
    if isinstance(value, io.IOBase) and not value.closed and value.writable():
        return io.StringIO() if isinstance(value, io.TextIOBase) else io.BytesIO()
    if isinstance(value, Iterator):
        return _Unreadable(type(value).__name__, path)
    return value


class Muted:
    """Something to be read from, such as a logger: its plain attributes are as they are, what it is told is dropped.

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

    def __bool__(self) -> bool:  # `if self.logger:`, of something that need not have a length
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
    """In place of an iterator that can't be copied."""

    def __init__(self, kind: str, path: str) -> None:
        self.kind, self.path = kind, path

    def __iter__(self) -> _Unreadable:
        return self

    def __next__(self) -> Any:
        raise MisconfigurationException(
            f"computing the loss reads from {self.path or 'an iterator'}, a {self.kind} that can't be copied, so that "
            "would take something away from training: pass loss_fn=lambda module, batch: ... that does not"
        )

    send = __next__


def _shadow(optimizer: Any, copier: Copier) -> Any:
    """An optimizer of the same settings and state whose parameters are the twin's, which changes none of them.

    The state is as large as the parameters, and hardly anybody asks for it.
    """
    shadow: Any = object.__new__(without_finalizer(type(optimizer)))
    copier.memo[id(optimizer)] = shadow
    copier.made.append((optimizer, shadow))
    own = {name: item for name, item in vars(optimizer).items() if name not in ("step", "zero_grad")}
    if "_optimizer" in own:  # Lightning's wrapper, which passes for an optimizer
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
    """Whether there is nothing to objects of a class for training but what they are told."""
    if kind.__name__ == "SummaryWriter" or comes_from(kind.__module__, ("wandb",)):
        return True
    names = {base.__name__ for base in kind.__mro__ if comes_from(base.__module__, (*_LIGHTNING, "lightning_probes"))}
    return not names.isdisjoint({"Logger", "ProgressBar", "Scheduled"})


def comes_from(module: object, packages: tuple[str, ...]) -> bool:
    """Whether a `__module__` is one of these packages or inside one; of what Cython compiled it may be a descriptor."""
    return isinstance(module, str) and (module in packages or module.startswith(tuple(f"{p}." for p in packages)))
