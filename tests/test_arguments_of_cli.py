"""A wrong argument in a config of LightningCLI ends with the sentence that the constructor has for it in Python."""

from __future__ import annotations

import contextlib
import inspect
import io
import pickle
import re
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from lightning_probes import (
    EveryNSteps,
    FisherTrace,
    HTMLReport,
    InitInterpolation,
    LayerCKA,
    ModeConnectivity,
    Schedule,
    Sharpness,
)
from tests.test_arguments import NEEDED, WRONG

WRONG_IN_YAML: dict[str, Any] = {
    "another number": 3.5,
    "a word": "no such word",
    "None": None,
    "nan": float("nan"),
    "negative": -1,
    "a switch": True,
    "an empty list": [],
    "a list of nothing": [None],
}


def parser() -> LightningArgumentParser:
    """Arguments as those of a Trainer in LightningCLI. An error is raised instead of written to stderr."""
    made = LightningArgumentParser(exit_on_error=False)
    made.add_argument("--callbacks", type=list[Callback] | Callback | None, default=None)  # type: ignore[arg-type]
    return made


PARSER = parser()


def built(*arguments: str, config: Any = None) -> Any:
    """The callbacks of a config and a command line."""
    parsed = PARSER.parse_object({"callbacks": config}) if config else PARSER.parse_args([*arguments])
    # jsonargparse before 4.49 has the other name.
    instantiate = getattr(PARSER, "instantiate", None) or PARSER.instantiate_classes
    return instantiate(parsed).callbacks


def config_of(kind: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    own = {"class_path": f"lightning_probes.{kind.__name__}", "init_args": arguments}
    if issubclass(kind, Schedule):
        return [{"class_path": "lightning_probes.Sharpness", "init_args": {"schedule": own}}]
    return [own]


def needed(kind: Any) -> dict[str, Any]:
    return {"other": "other.ckpt"} if kind is ModeConnectivity else NEEDED.get(kind, {})


def sentence_of(kind: Any, arguments: dict[str, Any]) -> str | None:
    """The error of the constructor in Python."""
    try:
        kind(**arguments)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in WRONG for name in inspect.signature(kind).parameters]
)
def test_a_wrong_value_in_a_config_is_refused_by_the_sentence_of_python(kind: Any, name: str) -> None:
    for value in WRONG_IN_YAML.values():
        arguments = {**needed(kind), name: value}
        sentence = sentence_of(kind, arguments)
        if sentence is None:
            continue
        with pytest.raises(Exception, match=re.escape(sentence)), contextlib.redirect_stderr(io.StringIO()):
            built(config=config_of(kind, arguments))


@pytest.mark.parametrize(
    ("argument", "attribute", "value"),
    [
        ("rho=1e-3", "rho", 0.001),
        ("rho=1", "rho", 1.0),
        ("num_samples=256", "num_samples", 256),
        ("per_layer=true", "per_layer", True),
        ("name=3", "name", "3"),
        ("sharp_threshold=null", "sharp_threshold", None),
        ("sharp_threshold=-2", "sharp_threshold", -2.0),
        ("quantities=[trace]", "quantities", ("trace",)),
        ("quantities+=sam", "quantities", ("sam",)),
        ("on_flag=stop", "on_flag", "stop"),
        ("data=val", "data", "val"),
    ],
)
def test_text_becomes_a_value_of_the_argument_s_type(argument: str, attribute: str, value: object) -> None:
    [probe] = built("--callbacks+=lightning_probes.Sharpness", f"--callbacks.{argument}")
    found = getattr(probe, attribute)
    assert (tuple(found) if isinstance(found, list) else found) == value
    assert isinstance(found, (type(value), list))


@pytest.mark.parametrize("text", ["1e-3", "0.001"])
def test_text_in_a_config_becomes_a_number(text: str) -> None:
    [probe] = built(config=config_of(Sharpness, {"rho": text, "num_samples": "64"}))
    assert (probe.rho, probe.num_samples) == (0.001, 64)
    [probe] = built(config=config_of(EveryNSteps, {"n": "10"}))
    assert probe.schedule == EveryNSteps(10)


class Unchecked(Sharpness):
    """With an argument that its constructor does not check."""

    def __init__(self, extra: float = 0.5, **shared: Any) -> None:
        super().__init__(**shared)
        self.extra = extra


def test_an_argument_that_a_stranger_does_not_check_is_still_checked_by_lightning_cli() -> None:
    def config(**arguments: Any) -> list[dict[str, Any]]:
        return [{"class_path": f"{__name__}.Unchecked", "init_args": arguments}]

    with pytest.raises(Exception, match="Expected a <class 'float'>"):
        built(config=config(extra="large"))
    with pytest.raises(Exception, match="rho must be a finite number above 0, got 'large'"):
        built(config=config(rho="large"))


def test_why_a_class_can_t_be_imported_is_said() -> None:
    for name in ("schedule", "data", "loss_fn"):
        with pytest.raises(Exception, match="no_such_project"):
            built(config=config_of(FisherTrace, {name: {"class_path": "no_such_project.Class"}}))


@pytest.mark.parametrize(
    ("kind", "name", "text", "why"),
    [
        (FisherTrace, "loss_fn", "no_such_project.loss", "No module named 'no_such_project'"),
        (FisherTrace, "predict_fn", "torch.nn.functional.no_such_loss", "has no attribute 'no_such_loss'"),
        (LayerCKA, "schedule", "no_such_project.Often", "No module named 'no_such_project'"),
        (LayerCKA, "data", "no_such_project.data", "No module named 'no_such_project'"),
    ],
)
def test_why_text_can_t_be_imported_is_said_in_a_config_and_in_python(
    kind: Any, name: str, text: str, why: str
) -> None:
    sentence = sentence_of(kind, {name: text})
    assert sentence is not None
    assert why in sentence
    with pytest.raises(Exception, match=re.escape(sentence)):
        built(config=config_of(kind, {name: text}))


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        (EveryNSteps, "n", "EveryNSteps: n must be a whole number of at least 1, got None"),
        (ModeConnectivity, "other", "other must be a path, a state dict, a module or"),
    ],
)
def test_an_argument_that_is_missing_in_a_config_is_named(kind: Any, name: str, sentence: str) -> None:
    assert inspect.signature(kind).parameters[name].default is inspect.Parameter.empty
    with pytest.raises(Exception, match=re.escape(sentence)):
        built(config=config_of(kind, {}))


def test_help_shows_the_types_that_an_argument_may_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        PARSER.parse_args(["--callbacks.help=lightning_probes.FisherTrace"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(type: int, default: 512)" in said
    assert "(type: Literal['sampled', 'exact', 'empirical'], default: sampled)" in said
    assert "(type: Optional[int], default: null)" in said or "(type: Union[int, null], default: null)" in said
    # On Python 3.10 an older jsonargparse leaves out the dots.
    assert "Any]," not in re.sub(r"Callable\[(\.\.\.)?, Any\],", "", said)


@pytest.mark.parametrize("kind", [Sharpness, LayerCKA, InitInterpolation, HTMLReport, EveryNSteps])
def test_what_lightning_cli_reads_can_be_pickled(kind: Any) -> None:
    signature = inspect.signature(kind.__init__)
    again = pickle.loads(pickle.dumps(signature))
    assert str(again) == str(signature)
