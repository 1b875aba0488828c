"""The arguments that probes share, declared once: their types, their defaults and their checks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Generic, TypeAlias

import numpy as np
from torch import Tensor, nn
from typing_extensions import TypedDict, TypeVar

from lightning_probes.probing.data.drawing import DataSource, DataSources
from lightning_probes.probing.names import NAME, check_name, is_name
from lightning_probes.probing.objective import LossFn, PredictFn
from lightning_probes.probing.run.announce import OnError, OnFlag
from lightning_probes.probing.run.init_state import InitStateSource
from lightning_probes.probing.schedules import Schedule
from lightning_probes.probing.values import check_all, check_choice, check_function, check_whole_number, refuse
from lightning_probes.reporting.wandb.artifact import ARTIFACT, FORM, is_artifact

AnyData: TypeAlias = DataSource | DataSources | None
Data = TypeVar("Data", bound=AnyData, default=DataSource)


class ScheduledArguments(TypedDict, total=False):
    """The arguments of probes, monitors and interventions, described in `Scheduled`."""

    schedule: Schedule | Sequence[Schedule]
    on_flag: OnFlag
    on_error: OnError
    name: str
    seed: int


class LossArguments(ScheduledArguments, Generic[Data], total=False):
    """The arguments of probes that need only a loss, described in `Probe`."""

    data: Data
    num_samples: int
    micro_batch_size: int | None
    loss_fn: LossFn | None


class PredictionArguments(LossArguments[Data], Generic[Data], total=False):
    """The arguments of probes that also need predictions."""

    predict_fn: PredictFn | None


class ProbeArguments(PredictionArguments[Data], Generic[Data], total=False):
    """The arguments of probes that also compare with the initialisation: all shared arguments."""

    init_state: InitStateSource | None


# In the order of a constructor's signature. `schedule` and `name` have no common default.
DEFAULTS: ProbeArguments[AnyData] = {
    "data": "train",
    "num_samples": 512,
    "micro_batch_size": None,
    "loss_fn": None,
    "predict_fn": None,
    "init_state": None,
    "on_flag": "log",
    "on_error": "raise",
    "seed": 0,
}
ORDER = ("schedule", *[name for name in DEFAULTS if name != "seed"], "name", "seed")

_NO_DATA = (type, int, float, complex, bytes, Tensor, np.ndarray, np.generic, type(None))


def check_shared_arguments(given: ScheduledArguments) -> None:
    """Check the arguments that probes, monitors and interventions share.

    Raises:
        ValueError: If one is wrong; the message names it.
    """
    check_name(given["name"])
    one_or_more = "one or more schedules such as EveryNSteps(100)"
    check_all("schedule", given["schedule"], lambda each: isinstance(each, Schedule), one_or_more)
    check_choice("on_flag", given["on_flag"], ("log", "alert", "stop"))
    check_choice("on_error", given["on_error"], ("raise", "warn"))
    check_whole_number("seed", given["seed"])


def check_data_arguments(given: ProbeArguments[AnyData], may_choose: bool) -> None:
    """Check the other arguments that probes share.

    Args:
        given: All shared arguments.
        may_choose: Whether the probe itself chooses its data if `data` is None.

    Raises:
        ValueError: If one is wrong; the message names it.
    """
    if given["data"] is not None or not may_choose:
        data = given["data"]
        sources = [*data.values()] if isinstance(data, Mapping) else data
        check_all("data", sources, _may_be_data, "'train', 'val', a DataLoader or a Dataset")
        if isinstance(data, Mapping) and not all(map(is_name, data)):
            refuse("data", f"a mapping of names to sources, and each name {NAME}", [*data])
    check_whole_number("num_samples", given["num_samples"], least=1)
    check_whole_number("micro_batch_size", given["micro_batch_size"], least=1, optional=True)
    check_function("loss_fn", given["loss_fn"])
    check_function("predict_fn", given["predict_fn"])
    check_state("init_state", given["init_state"], optional=True)


def check_state(name: str, source: object, optional: bool = False) -> None:
    """It is what a state can be read from, or None where that is allowed.

    Raises:
        ValueError: If it is not; the message names the argument.
    """
    named = re.fullmatch(ARTIFACT, str(source)) if is_artifact(source) else source != ""
    if not isinstance(source, (str, PathLike, Mapping, nn.Module, type(None) if optional else str)) or not named:
        refuse(name, f"a path, a state dict, a module or '{FORM}'", source, optional)


def _may_be_data(source: Any) -> bool:
    """Whether this may be data: "train", "val", or an object of a type that can give batches."""
    return source in ("train", "val") if isinstance(source, str) else not isinstance(source, _NO_DATA)
