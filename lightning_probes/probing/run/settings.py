"""The entry of a callback in the run's config."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning_probes.probing.constructor import arguments_of
from lightning_probes.probing.data.drawing import ProbeSet
from lightning_probes.probing.values import in_short


def settings_of(callback: Any, data: Mapping[str, ProbeSet], run: Any) -> dict[str, Any]:
    """All arguments of a callback, its drawn samples, precision and version, as values that JSON can hold."""
    drawn = {
        f"{split}_{what}": value
        for split, probe_set in data.items()
        for what, value in (("samples", probe_set.num_samples), ("micro_batch_size", max(probe_set.sizes)))
    }
    own = {
        "probe": type(callback).__name__,
        "precision": str(run.precision),
        "version": version_of("lightning-probes"),
    }
    recorded = as_json({**callback.recorded, **arguments_of(callback), **drawn, **own})
    by_name = getattr(callback, "data", None)
    return {**recorded, "data": as_json(by_name)} if isinstance(by_name, Mapping) else recorded


def version_of(package: str) -> str:
    """The version of a package; "not installed" if it is used from a path without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as values that JSON can hold. Objects other than numbers, text and lists become a short description.

    Of a mapping, such as an initial state dict, only the size is kept.

    Example:
        >>> as_json({"num_samples": 512, "data": ("train", "val"), "loss_fn": None, "dtype": complex})
        {'num_samples': 512, 'data': ['train', 'val'], 'loss_fn': None, 'dtype': "<class 'complex'>"}
    """
    return {name: _as_json(value) for name, value in values.items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {len(value)} entries"
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else in_short(value)
