"""Every argument of every callback and schedule is refused by name in the constructor, where it can't be right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

import lightning_probes
from lightning_probes import (
    AtCheckpoints,
    AtFitEnd,
    AttentionDistance,
    DropoutStability,
    EveryNEpochs,
    EveryNSteps,
    FisherPenalty,
    FisherTrace,
    GradientFlow,
    GradientNorms,
    Head2Toe,
    HTMLReport,
    InitInterpolation,
    LayerCKA,
    LinearProbes,
    LogSpacedSteps,
    LossPlane,
    ModeConnectivity,
    ResidualFlow,
    Schedule,
    Sharpness,
    TrainingRegime,
)

NAN, INF = float("nan"), float("inf")
NO_NUMBER: list[Any] = ["10", NAN, INF, -INF, 2**70, True, [1.0], torch.ones(2), float, 1j]
NO_WHOLE_NUMBER: list[Any] = ["10", NAN, INF, 1.5, 10.0, -1, True, [10], 2**70, int, torch.ones(2)]
NO_SWITCH: list[Any] = ["yes", 1, None, bool, [True]]
NO_WORD: list[Any] = ["", "other", None, 3, True, str, ["log"], np.ones(2)]
NO_FUNCTION: list[Any] = ["loss", 3, True, nn.CrossEntropyLoss, [print]]
NO_NAMES: list[Any] = [[], (), "", [""], [3], 3, True, nn.Linear, [nn.Linear], [["net"]], {"net"}]
NO_SCHEDULE: list[Any] = [
    None, [], (), 100, "10", True, AtFitEnd, [AtFitEnd], EveryNSteps, [EveryNSteps(5), 10], [None], {AtFitEnd()},
]  # fmt: skip
NO_DATA: list[Any] = [
    "vall", "", 3, 1.5, True, [], ["train", "test"], [None], torch.utils.data.TensorDataset, b"train", np.ones(3),
    torch.ones(3), {}, {"train": "test"}, {"train": "train", "other": None}, {3: "train"}, {"": "train"},
    {"a.b": "val"}, {"*": "val"}, {"a": "train", "b": torch.ones(3)},
]  # fmt: skip

NO_STATE: list[Any] = [
    "", 3, True, nn.Linear, [("weight", torch.ones(2))], torch.ones(2), "wandb:artifact:best", "wandb:a/b/c", "wandb:",
]  # fmt: skip

COMMON: dict[str, list[Any]] = {
    "name": ["", None, 3, True, ["a"], str],
    "schedule": NO_SCHEDULE,
    "data": NO_DATA,
    "num_samples": [*NO_WHOLE_NUMBER, 0, None],
    "micro_batch_size": [*NO_WHOLE_NUMBER, 0],
    "loss_fn": NO_FUNCTION,
    "predict_fn": NO_FUNCTION,
    "init_state": NO_STATE,
    "on_flag": NO_WORD,
    "on_error": NO_WORD,
    "seed": [*NO_WHOLE_NUMBER, None],
    "per_layer": NO_SWITCH,
}
WRONG: dict[Callable[..., Any], dict[str, list[Any]]] = {
    AttentionDistance: {
        "layers": [*NO_NAMES, None],
        "grid": ["14", 14, 0, True, (), [], (14, 0), (14, 1.5), (2, 2, 2, 2), [(14, 14)], torch.ones(2), {2, 3}],
        "patch_size": [*NO_NUMBER, 0, -1.0],
        "prefix_tokens": [*NO_WHOLE_NUMBER, None, "", "cls", ["auto"]],
        "renormalize": NO_SWITCH,
    },
    DropoutStability: {
        "data": [*NO_DATA, None],
        "fraction": [*NO_NUMBER, 1, 1.5, -0.1, None],
        "halves": [*NO_WHOLE_NUMBER, 0, None],
        "rescale": NO_SWITCH,
        "layers": NO_NAMES,
        "batch_norm": NO_WORD,
    },
    FisherPenalty: {
        "coefficient": [*NO_NUMBER, -0.1, None],
        "every": [*NO_WHOLE_NUMBER, 0, None],
        "until": ["10", NAN, INF, 1.5, 10.0, 0, 0.0, -1, -0.5, True, [10], 2**70, int, torch.ones(2)],
        "exclude_norm": NO_SWITCH,
        "likelihood": NO_WORD,
    },
    FisherTrace: {
        "data": [*NO_DATA, None],
        "labels": NO_WORD,
        "likelihood": NO_WORD,
        "explosion_factor": [*NO_NUMBER, 0, -2.0],
        "at_loss": NO_NUMBER,
    },
    GradientFlow: {
        "data": [*NO_DATA, None],
        "layers": [*NO_NAMES, None],
        "vanishing": [*NO_NUMBER, 0, -1.0, None],
        "exploding": [*NO_NUMBER, 0, -1.0, None],
    },
    GradientNorms: {},
    InitInterpolation: {
        "data": [*NO_DATA, None],
        "num_alphas": [*NO_WHOLE_NUMBER, 1, None],
        "batch_norm": NO_WORD,
        "tolerance": [*NO_NUMBER, -1e-3, None],
        "layers": NO_NAMES,
        "linearized": NO_SWITCH,
    },
    LossPlane: {
        "data": [*NO_DATA, None],
        "directions": NO_WORD,
        "checkpoints": ["", 3, True, nn.Linear, torch.ones(2), [], [3], [""]],
        "resolution": [*NO_WHOLE_NUMBER, 2, None],
        "span": [*NO_NUMBER, 0, -1.0, None],
        "batch_norm": [word for word in NO_WORD if word is not None],
    },
    LayerCKA: {
        "layers": [*NO_NAMES, None],
        "tokens": NO_WORD,
        "other": NO_STATE,
        "other_layers": [*NO_NAMES, None],
    },
    Head2Toe: {
        "layers": [*NO_NAMES, None],
        "tokens": [*NO_WORD, "flatten"],
        "max_features": [*NO_WHOLE_NUMBER, 0, None],
        "fraction": [*NO_NUMBER, 0, 1.5, -0.1],
        "penalty": [*NO_NUMBER, 1, -0.1, None],
    },
    LinearProbes: {
        "layers": [*NO_NAMES, None],
        "tokens": [*NO_WORD, "flatten"],
        "max_features": [*NO_WHOLE_NUMBER, 0, None],
        "task": NO_WORD,
    },
    ModeConnectivity: {
        "data": [*NO_DATA, None],
        "other": [*NO_STATE, None],
        "align": ["", "other", 3, True, str, ["weights"], np.ones(2)],
        "repair": NO_SWITCH,
        "path": NO_WORD,
        "path_steps": [*NO_WHOLE_NUMBER, 0, None],
        "path_lr": [*NO_NUMBER, 0, -0.1, None],
        "cross": NO_SWITCH,
        "other_init": NO_STATE,
        "num_alphas": [*NO_WHOLE_NUMBER, 1, None],
        "batch_norm": NO_WORD,
    },
    ResidualFlow: {"data": [*NO_DATA, None], "tokens": NO_WORD},
    Sharpness: {
        "data": [*NO_DATA, None],
        "quantities": ["sam", "lambda_max", (), [], None, ("lambda_min",), ("sam", 3), 3, [[]]],
        "rho": [*NO_NUMBER, 0, -0.1, None],
        "instability_threshold": [*NO_NUMBER, 0, -1, None],
        "sharp_threshold": NO_NUMBER,
    },
    TrainingRegime: {"data": [*NO_DATA, None]},
    HTMLReport: {"path": ["", None, 3, True, Path, b"report.html"]},
    EveryNSteps: {"n": [*NO_WHOLE_NUMBER, 0, None], "start": [*NO_WHOLE_NUMBER, None], "stop": NO_WHOLE_NUMBER},
    LogSpacedSteps: {"per_decade": [*NO_WHOLE_NUMBER, 0, None], "stop": NO_WHOLE_NUMBER},
    EveryNEpochs: {"n": [*NO_WHOLE_NUMBER, 0, None]},
    AtCheckpoints: {"min_growth": [*NO_NUMBER, 0.5, None]},
    AtFitEnd: {},
}
NEEDED: dict[Callable[..., Any], dict[str, Any]] = {
    EveryNSteps: {"n": 5}, FisherPenalty: {"coefficient": 0.1}, LogSpacedSteps: {"per_decade": 4},
    ModeConnectivity: {"other": {}},
}  # fmt: skip


def wrong_of(kind: Callable[..., Any]) -> dict[str, list[Any]]:
    parameters = inspect.signature(kind).parameters
    return {name: values for name, values in {**COMMON, **WRONG[kind]}.items() if name in parameters}


ALL = [
    pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{index}")
    for kind in WRONG
    for name, values in wrong_of(kind).items()
    for index, value in enumerate(values)
]


@pytest.mark.parametrize(("kind", "name", "value"), ALL)
def test_wrong_argument_is_refused_by_name_where_it_is_written(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"(^|: ){name} must be .*, got ") as caught:
        kind(**{**NEEDED.get(kind, {}), name: value})
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


class OfNoUse:
    """An object that is nothing an argument may be."""


KINDS_OF_WRONG: dict[str, Any] = {
    "another type": OfNoUse(),
    "None": None,
    "nan": NAN,
    "negative": -1,
    "a class": OfNoUse,
    "an empty list": [],
}
# What is right all the same: by argument, and where that is not enough by callback.
RIGHT_ALL_THE_SAME: dict[str, set[str]] = {
    "data": {"another type"},  # whatever is iterated over may be data, and shows that it is at the first batch
    "micro_batch_size": {"None"},
    "loss_fn": {"None"},
    "predict_fn": {"None"},
    "init_state": {"None"},
    "other_init": {"None"},
    "align": {"None"},
    "explosion_factor": {"None"},
    "at_loss": {"None", "negative"},
    "sharp_threshold": {"None", "negative"},
    "stop": {"None"},
    "until": {"None"},
    "InitInterpolation.layers": {"None"},
    "DropoutStability.layers": {"None"},
    "LossPlane.checkpoints": {"None"},
    "LossPlane.batch_norm": {"None"},
    "LayerCKA.data": {"None"},
    "LayerCKA.other": {"None"},
    "LinearProbes.data": {"None"},
    "Head2Toe.data": {"None"},
    "Head2Toe.fraction": {"None"},
    "AttentionDistance.data": {"None"},
    "grid": {"None"},
    "patch_size": {"None"},
}


def right_all_the_same(kind: Any, name: str) -> set[str]:
    return RIGHT_ALL_THE_SAME.get(name, set()) | RIGHT_ALL_THE_SAME.get(f"{kind.__name__}.{name}", set())


@pytest.mark.parametrize("what", KINDS_OF_WRONG)
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in WRONG for name in inspect.signature(kind).parameters]
)
def test_each_kind_of_wrong_value_is_refused_for_each_argument(kind: Any, name: str, what: str) -> None:
    arguments = {**NEEDED.get(kind, {}), name: KINDS_OF_WRONG[what]}
    if what in right_all_the_same(kind, name):
        kind(**arguments)
        return
    with pytest.raises(ValueError, match=rf"(^|: ){name} must be .*, got "):
        kind(**arguments)


@pytest.mark.parametrize("kind", WRONG)
def test_no_argument_is_left_out_above(kind: Any) -> None:
    assert set(inspect.signature(kind).parameters) == set(wrong_of(kind))


def test_no_callback_and_no_schedule_is_left_out_above() -> None:
    public = [each for name in lightning_probes.__all__ if isinstance(each := getattr(lightning_probes, name), type)]
    checked = {kind for kind in public if issubclass(kind, (Callback, Schedule)) and not inspect.isabstract(kind)}
    assert set(WRONG) == checked - {Schedule}


def test_long_value_is_told_in_short() -> None:
    with pytest.raises(ValueError, match="labels must be") as caught:
        FisherTrace(labels=["row"] * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sharpness(num_samples=np.int64(5), rho=np.float32(0.1), sharp_threshold=10),  # type: ignore[arg-type]
        lambda: Sharpness(quantities=["sam"], rho=Fraction(1, 2)),  # type: ignore[arg-type]
        lambda: Sharpness(sharp_threshold=-1.0, loss_fn=nn.CrossEntropyLoss()),
        lambda: FisherTrace(schedule=(EveryNSteps(5), AtFitEnd()), at_loss=-2.0, explosion_factor=None),
        lambda: LayerCKA(layers="net.*", data=None),
        lambda: LayerCKA(layers=("net.0", "net.1"), init_state=Path("start.ckpt")),
        lambda: InitInterpolation(layers=None, tolerance=0, data=["train", [torch.ones(2)]]),  # type: ignore[list-item]
        lambda: InitInterpolation(init_state={}, data=(torch.utils.data.TensorDataset(torch.ones(2)), "val")),
        lambda: ModeConnectivity("wandb:team/my project/model-abc:v3", init_state=nn.Linear(2, 1)),
        lambda: ModeConnectivity(nn.Linear(2, 1), cross=True, other_init=Path("start.ckpt")),
        lambda: InitInterpolation(data={"train": "train", "a/b": torch.utils.data.TensorDataset(torch.ones(2))}),
        lambda: FisherPenalty(np.float32(0.1), until=np.float64(1.0)),  # type: ignore[arg-type]
        lambda: FisherPenalty(0, every=np.int64(3), until=Fraction(1, 2)),  # type: ignore[arg-type]
        lambda: EveryNSteps(5, stop=None),
        lambda: HTMLReport(Path("report.html")),
    ],
)
def test_valid_arguments_are_accepted(make: Callable[[], Any]) -> None:
    make()


def test_a_default_of_an_argument_that_does_not_exist_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"Misspelt.defaults has 'num_sample', which is none of schedule, data"):
        type("Misspelt", (Sharpness,), {"defaults": {"num_sample": 3}})
    assert type("Spelt", (Sharpness,), {"defaults": {"num_samples": 3}})().num_samples == 3
