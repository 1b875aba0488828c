"""Data in any of the forms that people have it in, as arguments of `Trainer.fit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

_NAMES = {"train", "val"}


def fit_arguments(data: Any) -> dict[str, Any]:
    """The arguments of `Trainer.fit` for a loader, a Dataset, a data module, or a dict such as `{"train": loader}`.

    Sources that are None are left out.

    Example:
        >>> fit_arguments({"train": [1, 2], "val": None})
        {'train_dataloaders': [1, 2]}
    """
    if isinstance(data, LightningDataModule):
        return {"datamodule": data}
    named = data if isinstance(data, Mapping) and data.keys() <= _NAMES else {"train": data}
    return {f"{name}_dataloaders": _loader(source) for name, source in named.items() if source is not None}


def _loader(source: Any) -> Any:
    return DataLoader(source, batch_size=64) if isinstance(source, Dataset) else source
