import importlib
import json
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_probes
from lightning_probes import EveryNSteps, FisherTrace, HTMLReport, InitInterpolation, LayerCKA, Sharpness
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.run.settings import as_json, settings_of
from tests.resumable import resumable
from tests.tester import fit, probe

KINDS = (FisherTrace, InitInterpolation, LayerCKA, Sharpness)
TRAINER = SimpleNamespace(precision="bf16-mixed")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=5
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_what_json_holds_stays_as_it_is(values):
    assert as_json(values) == values


@pytest.mark.parametrize(
    "value",
    [
        complex(1, 2), torch.float32, nn.Linear(2, 1), DataLoader(range(3)), EveryNSteps(5), lambda module, batch: 0,
        (EveryNSteps(5), {"weight": torch.ones(2)}), {1: 2}, torch.ones(2),
    ],
)  # fmt: skip
def test_any_other_value_becomes_text_that_json_can_hold(value):
    json.dumps(as_json({"value": value}))


def test_schedules_are_told_with_their_arguments():
    assert as_json({"schedule": [EveryNSteps(5)]}) == {"schedule": ["EveryNSteps(n=5, start=0, stop=None)"]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_probe_is_told_whole(kind):
    probe = kind(num_samples=7, seed=3, name="mine")
    data = {"train": Drawing(12, 4).draw(TensorDataset(torch.zeros(10, 2)))}
    settings = settings_of(probe, data, TRAINER)
    assert json.loads(json.dumps(settings)) == settings
    assert settings["probe"] == kind.__name__
    assert settings["precision"] == "bf16-mixed"
    assert (settings["num_samples"], settings["seed"], settings["name"]) == (7, 3, "mine")
    assert (settings["train_samples"], settings["train_micro_batch_size"]) == (10, 4)
    assert settings["version"]
    assert settings["schedule"]


@pytest.mark.parametrize("argument", ["loss_fn", "predict_fn"])
def test_functions_of_the_objective_are_among_the_arguments(argument):
    def own(module, batch):
        return None

    settings = settings_of(InitInterpolation(**{argument: own}), {}, TRAINER)
    assert "own" in settings[argument]
    assert settings[{"loss_fn": "predict_fn", "predict_fn": "loss_fn"}[argument]] is None


@pytest.mark.parametrize(("mode", "told"), [("recalibrate", "recalibrate"), ("eval", "eval")])
def test_batch_norm_is_in_the_mode_that_was_asked_for(mode, told):
    assert settings_of(InitInterpolation(batch_norm=mode), {}, TRAINER)["batch_norm"] == told


def test_a_package_used_from_a_path_has_a_version_that_says_so(monkeypatch, tmp_path):
    def version(package):
        if package == "lightning-probes":
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr("lightning_probes.probing.run.settings.version", version)
    measuring = probe("sharpness")
    fit(resumable, [measuring, HTMLReport(tmp_path / "report.html")], tmp_path)
    assert measuring.settings["version"] == "not installed"
    assert "lightning-probes not installed, lightning 1.0, torch 1.0, Python" in (tmp_path / "report.html").read_text()


def test_the_package_has_a_version_installed_or_not(monkeypatch):
    assert lightning_probes.__version__ == version("lightning-probes")

    def missing(package):
        raise PackageNotFoundError(package)

    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", missing)
        assert importlib.reload(lightning_probes).__version__ == "0+unknown"
    assert importlib.reload(lightning_probes).__version__ == version("lightning-probes")


def test_arguments_that_a_probe_does_not_keep_are_left_out():
    class Forgetful(Sharpness):
        def __init__(self, *, factor=2.0, **shared):
            super().__init__(**shared)

    assert "factor" not in settings_of(Forgetful(), {}, TRAINER)
