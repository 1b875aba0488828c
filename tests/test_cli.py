"""LightningCLI builds every probe from the command line and from YAML, and what it saves builds an equal run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_probes import AtFitEnd, EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.probing.constructor import arguments_of
from tests.test_documents import blocks

KINDS = (FisherTrace, InitInterpolation, LayerCKA, Sharpness)
QUIET = [
    "--seed_everything=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def built(arguments: list[str], command: str | None = None, **keywords: Any) -> tuple[LightningCLI, list[Probe]]:
    """A CLI and its probes; it runs if there is a command."""
    given = [*QUIET, *arguments] if command is None else [command, *QUIET, *arguments]
    keywords = {"save_config_callback": None, **keywords}
    cli = LightningCLI(BoringModel, run=command is not None, args=given, **keywords)
    return cli, [callback for callback in cli.trainer.callbacks if isinstance(callback, Probe)]


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        (FisherTrace, "per_layer", True),
        (InitInterpolation, "num_alphas", 7),
        (LayerCKA, "layers", ["layer"]),
        (Sharpness, "rho", 0.2),
    ],
)
def test_probe_is_built_with_its_arguments(kind: type[Probe], argument: str, value: object) -> None:
    arguments = [
        f"--trainer.callbacks+=lightning_probes.{kind.__name__}",
        f"--trainer.callbacks.{argument}={value}",
        "--trainer.callbacks.schedule=lightning_probes.EveryNSteps",
        "--trainer.callbacks.schedule.n=9",
        "--trainer.callbacks.on_flag=stop",
    ]
    cli = LightningCLI(BoringModel, run=False, args=arguments, save_config_callback=None)
    [probe] = [callback for callback in cli.trainer.callbacks if isinstance(callback, kind)]
    assert getattr(probe, argument) == value
    assert probe.schedule == EveryNSteps(9)
    assert probe.on_flag == "stop"


def settings(probe: Probe) -> dict[str, Any]:
    """Arguments, with lists for tuples: YAML knows no other."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments_of(probe).items()}


SCHEDULES = [
    {"class_path": "lightning_probes.EveryNSteps", "init_args": {"n": 7}},
    {"class_path": "lightning_probes.AtFitEnd"},
]
CALLBACKS = [
    *[{"class_path": f"lightning_probes.{kind.__name__}"} for kind in KINDS],
    *[
        {
            "class_path": f"lightning_probes.{kind.__name__}",
            "init_args": {
                "schedule": SCHEDULES,
                "name": f"{kind.__name__}/2",
                "micro_batch_size": 1,
                "on_flag": "stop",
            },
        }
        for kind in KINDS
    ],
    {"class_path": "lightning_probes.Sharpness", "init_args": {"name": "3", "schedule": SCHEDULES[0]}},
    {"class_path": "lightning_probes.HTMLReport", "init_args": {"path": "page.html"}},
]


def config_of(callbacks: list[dict[str, Any]], folder: Path) -> str:
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return f"--config={path}"


def numbers_of(probe: Probe) -> list[dict[str, float]]:
    timings = ("sharpness/seconds", "probes/overhead")
    return [{key: value for key, value in row.items() if key not in timings} for row in probe.history]


def check_equal(found: list[Probe], first: list[Probe]) -> None:
    assert [type(probe) for probe in found] == [type(probe) for probe in first]
    assert [*map(settings, found)] == [*map(settings, first)]


def test_what_a_fit_saves_builds_an_equal_run(tmp_path: Path) -> None:
    given = [config_of(CALLBACKS[3:4], tmp_path), "--trainer.max_steps=2", f"--trainer.default_root_dir={tmp_path}"]
    _, [first] = built(given, "fit", save_config_callback=SaveConfigCallback)
    [saved] = tmp_path.rglob("config.yaml")
    content = yaml.safe_load(saved.read_text())
    [written] = content["trainer"]["callbacks"]
    assert written["init_args"]["schedule"] == [
        {"class_path": "lightning_probes.LogSpacedSteps", "init_args": {"per_decade": 4, "stop": None}},
        {"class_path": "lightning_probes.AtFitEnd", "init_args": {}},
    ]
    _, again = built([f"--config={saved}", f"--trainer.default_root_dir={tmp_path / 'again'}"], "fit")
    check_equal(again, [first])
    assert numbers_of(again[0]) == numbers_of(first) != []


def test_every_probe_with_schedules_given_and_by_default_is_read_again_as_it_was(tmp_path: Path) -> None:
    cli, first = built([config_of(CALLBACKS, tmp_path)])
    text = cli.parser.dump(cli.config, skip_none=False)
    assert "Unable" not in text
    (tmp_path / "saved.yaml").write_text(text)
    _, again = built([f"--config={tmp_path / 'saved.yaml'}"])
    assert len(again) == len(CALLBACKS) - 1
    check_equal(again, first)
    for kind, probe in zip(KINDS, again, strict=False):
        by_default = settings(kind())
        assert settings(probe) == by_default


def test_print_config_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        built([config_of(CALLBACKS, tmp_path), "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    _, again = built([f"--config={tmp_path / 'printed.yaml'}"])
    _, first = built([config_of(CALLBACKS, tmp_path)])
    check_equal(again, first)


MINE = (EveryNSteps(3), AtFitEnd())


class Mine(Sharpness):
    """With a schedule in its own constructor, as a stranger may write it."""

    def __init__(self, schedule: Any = MINE, extra: float = 0.5, **shared: Any) -> None:
        super().__init__(schedule=schedule, **shared)
        self.extra = extra


def test_a_stranger_s_probe_is_saved_with_its_own_default_schedule(tmp_path: Path) -> None:
    cli, [first] = built([config_of([{"class_path": f"{__name__}.Mine", "init_args": {"rho": 0.3}}], tmp_path)])
    (tmp_path / "saved.yaml").write_text(cli.parser.dump(cli.config, skip_none=False))
    _, [again] = built([f"--config={tmp_path / 'saved.yaml'}"])
    check_equal([again], [first])
    assert again.schedule == [*MINE]


LOSSES = """
class Scaled:
    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def __call__(self, module, batch):
        return self.factor * module(batch).square().mean()


def probe_loss(module, batch):
    return module(batch).square().mean()


def predictions(module, batch):
    return module(batch), None


halved = Scaled(0.5)
"""


def project(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "my_project") -> Any:
    """The module `losses` of a user's project."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    (folder / name / "losses.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    for each in (name, f"{name}.losses"):
        monkeypatch.delitem(sys.modules, each, raising=False)
    return importlib.import_module(f"{name}.losses")


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return project(tmp_path, monkeypatch, LOSSES)


def test_functions_are_given_by_dotted_paths_and_saved_so(losses: Any, tmp_path: Path) -> None:
    given = {"loss_fn": "my_project.losses.probe_loss", "predict_fn": "my_project.losses.predictions"}
    config = config_of([{"class_path": "lightning_probes.FisherTrace", "init_args": given}], tmp_path)
    cli, [probe] = built([config])
    assert probe.objective.loss_fn is losses.probe_loss
    assert probe.objective.predict_fn is losses.predictions
    saved = yaml.safe_load(cli.parser.dump(cli.config))["trainer"]["callbacks"][0]["init_args"]
    assert {name: saved[name] for name in given} == given


def test_a_loss_with_arguments_is_given_by_its_class(losses: Any, tmp_path: Path) -> None:
    given = {"class_path": "my_project.losses.Scaled", "init_args": {"factor": 3.0}}
    config = config_of([{"class_path": "lightning_probes.Sharpness", "init_args": {"loss_fn": given}}], tmp_path)
    _, [probe] = built([config])
    assert isinstance(probe.objective.loss_fn, losses.Scaled)
    assert probe.objective.loss_fn.factor == 3.0


def test_a_loss_given_by_its_path_is_measured(losses: Any, tmp_path: Path) -> None:
    arguments = [
        "--trainer.callbacks=lightning_probes.Sharpness",
        "--trainer.callbacks.loss_fn=my_project.losses.halved",
        "--trainer.callbacks.quantities=[sam]",
        "--trainer.callbacks.schedule=lightning_probes.AtFitEnd",
        "--trainer.max_steps=2",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    _, [probe] = built(arguments, "fit")
    assert probe.history[-1]["sharpness/loss"] > 0


def test_a_path_to_nothing_is_refused_by_name(losses: Any, tmp_path: Path) -> None:
    given = {"loss_fn": "my_project.losses.nothing"}
    sentence = "loss_fn must be a function of .*, got 'my_project.losses.nothing' .*has no attribute 'nothing'"
    with pytest.raises(ValueError, match=sentence):
        built([config_of([{"class_path": "lightning_probes.Sharpness", "init_args": given}], tmp_path)])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_samples": -1}, "num_samples must be a whole number of at least 1, got -1"),
        ({"name": "a*"}, "name must be a text without '*', '.', backslash and control characters, got 'a*'"),
        ({"schedule": []}, "schedule must be one or more schedules such as EveryNSteps(100), got []"),
        ({"rho": -0.5}, "rho must be a finite number above 0, got -0.5"),
        (
            {"schedule": {"class_path": "lightning_probes.EveryNSteps", "init_args": {"n": 0}}},
            "EveryNSteps: n must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_the_same_sentence_as_in_python(
    given: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        built([config_of([{"class_path": "lightning_probes.Sharpness", "init_args": given}], tmp_path)])
    assert sentence in str(caught.value)


def test_an_argument_that_a_probe_does_not_take_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        built([config_of([{"class_path": "lightning_probes.Sharpness", "init_args": {"predict_fn": None}}], tmp_path)])
    assert "predict_fn" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_help_has_every_argument(kind: type[Probe], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        built([f"--trainer.callbacks.help=lightning_probes.{kind.__name__}"])
    said = capsys.readouterr().out
    for name in arguments_of(kind()):
        assert f"--trainer.callbacks.{name} " in said
    assert f"default: {kind().name})" in said
    assert "default: 512)" in said


def test_the_example_of_the_page_builds_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = [block for block in blocks("docs/sweeps.md", "yaml") if "my_project" in block]
    [source] = [block for block in blocks("docs/sweeps.md", "python") if "def probe_loss" in block]
    (tmp_path / "example.yaml").write_text(example.replace("my_project", "page_project"))
    module = project(tmp_path, monkeypatch, source, "page_project")
    _, [probe] = built([f"--config={tmp_path / 'example.yaml'}"])
    assert probe.objective.loss_fn is module.probe_loss
    assert isinstance(probe.objective.predict_fn, module.Predictions)
    assert probe.schedule == EveryNSteps(100)
