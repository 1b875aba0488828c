"""Which package a class or function comes from. There are two Lightnings to install, with the same names in both."""

from __future__ import annotations

LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")


def comes_from(value: object, packages: tuple[str, ...] = LIGHTNING) -> bool:
    """Whether a class or function is defined in one of some packages, by default in Lightning itself.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Mine(LightningModule): ...
        >>> comes_from(LightningModule), comes_from(Mine)
        (True, False)
    """
    module = getattr(value, "__module__", None)  # of what Cython compiled it may be a descriptor
    return isinstance(module, str) and (module in packages or module.startswith(tuple(f"{p}." for p in packages)))


def names_in(kind: type, packages: tuple[str, ...] = LIGHTNING) -> set[str]:
    """Names of the classes of some packages, by default of Lightning, that a class is or is made from.

    Example:
        >>> from lightning.pytorch.callbacks import Timer
        >>> class Mine(Timer): ...
        >>> sorted(names_in(Mine))
        ['Callback', 'Timer']
    """
    return {base.__name__ for base in kind.__mro__ if comes_from(base, packages)}
