"""The arguments that every probe has."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from lightning_probes.probing.names import check_name
from lightning_probes.probing.schedules import Schedule
from lightning_probes.probing.values import (
    check_all,
    check_choice,
    check_function,
    check_whole_number,
    refuse,
)

_NO_DATA = (type, int, float, complex, bytes, Tensor, np.ndarray, np.generic, type(None))


def check_shared_arguments(
    *, name: object, schedule: object, on_flag: object, on_error: object, seed: object
) -> None:  # fmt: skip
    """The arguments that every probe, monitor and intervention has are what they can be.

    Raises:
        ValueError: If one is not; names it.
    """
    check_name(name)
    check_all(
        "schedule", schedule, lambda each: isinstance(each, Schedule), "one or more schedules such as EveryNSteps(100)"
    )
    check_choice("on_flag", on_flag, ("log", "alert", "stop"))
    check_choice("on_error", on_error, ("raise", "warn"))
    check_whole_number("seed", seed)


def check_data_arguments(
    *, data: object, num_samples: object, micro_batch_size: object, loss_fn: object, predict_fn: object,
    init_state: object, may_choose: bool,
) -> None:  # fmt: skip
    """The arguments that every probe has besides are what they can be.

    Raises:
        ValueError: If one is not; names it.
    """
    if data is not None or not may_choose:
        check_all("data", data, _may_be_data, "'train', 'val', a DataLoader or a Dataset")
    check_whole_number("num_samples", num_samples, least=1)
    check_whole_number("micro_batch_size", micro_batch_size, least=1, optional=True)
    check_function("loss_fn", loss_fn)
    check_function("predict_fn", predict_fn)
    if not isinstance(init_state, (str, PathLike, Mapping, type(None))) or init_state == "":
        refuse("init_state", "a path or a state dict", init_state, optional=True)


def _may_be_data(source: Any) -> bool:
    """Whether this is no text but "train" and "val", and nothing that gives no batches for certain."""
    return source in ("train", "val") if isinstance(source, str) else not isinstance(source, _NO_DATA)
