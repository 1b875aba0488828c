"""What an online run sends to the W&B server, and what an offline run keeps beside ten thousand calls of the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_probes import AtFitEnd, EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.testing.zoo import CASES
from tests import wandb_offline
from tests.tester import fit
from tests.wandb_backend import Backend, ServerRun

STEPS = [0, 2, 4, 5]
KEYS = {
    "fisher": ("trace", "trace_se", "loss"),
    "interpolation": (
        "monotonic", "max_rise", "max_rise_se", "plateau_fraction", "distance", "distance_normalized", "bn_gap",
    ),
    "cka": ("to_init_mean", "null_p95"),
    "sharpness": (
        "lambda_max", "lambda_max_residual", "lambda_max_se", "stability_ratio", "sam", "sam_se", "loss", "trace",
        "trace_se", "flag/edge_of_stability", "flag/unstable", "flag/sharp",
    ),
}  # fmt: skip
PLOTLY = (
    "fisher/trace_over_steps", "fisher/trace_over_loss", "cka/layers", "cka/to_init",
    "sharpness/stability_ratio_over_steps", "sharpness/lambda_max_over_steps",
    *(f"interpolation/{key}_coloured" for key in ("loss", "val/loss", "accuracy", "val/accuracy")),
)  # fmt: skip
TABLES = {
    "fisher/events": {"step", "epoch", "trace", "trace_se", "loss"},
    "sharpness/events": {"step", "epoch", "lambda_max", "lambda_max_se", "stability_ratio", "sam", "loss"},
    "cka/layers_table": {"step", "row", "column", "value"},
    "cka/to_init_table": {"step", "row", "value"},
    "Custom Chart Tables/interpolation/loss_table": {"step", "alpha", "loss", "line"},
    "Custom Chart Tables/interpolation/val/accuracy_table": {"step", "alpha", "accuracy", "line"},
}


@pytest.fixture(scope="module")
def probes() -> list[Probe]:
    options = {"schedule": [EveryNSteps(2), AtFitEnd()], "num_samples": 16, "on_flag": "alert"}
    return [
        FisherTrace(per_layer=True, **options),
        InitInterpolation(num_alphas=4, **options),
        LayerCKA(**options),
        Sharpness(quantities=("lambda_max", "sam", "trace"), sharp_threshold=0.0, **options),
    ]


@pytest.fixture(scope="module")
def run(wandb_server: Backend, probes: list[Probe], tmp_path_factory: pytest.TempPathFactory) -> ServerRun:
    """A fit of five steps with the four probes, as it arrived."""
    folder = tmp_path_factory.mktemp("fit")
    logger = WandbLogger(project="online", save_dir=folder)
    fit(CASES["cnn"].make, probes, folder, logger=logger)
    name = logger.experiment.id
    wandb.finish()
    return wandb_server.runs[name]


def test_every_key_of_every_probe_arrives_at_its_step_with_its_value(run: ServerRun, probes: list[Probe]) -> None:
    arrived = {key for row in run.history for key in row}
    common = ("seconds", "flag/nonfinite", "flag/not_converged")
    layers = {key for key in probes[0].history[0] if key.startswith("fisher/layer/")}
    expected = {f"{name}/{key}" for name, keys in KEYS.items() for key in (*keys, *common)} | layers
    assert layers
    assert expected | {"probes/overhead"} <= arrived
    for probe in probes:
        assert [entry["step"] for entry in probe.history] == STEPS
        for key in probe.history[0].keys() - {"step", "epoch", "probes/overhead"}:
            there = [(row["trainer/global_step"], row[key]) for row in run.rows(key)]
            assert there == [(entry["step"], entry[key]) for entry in probe.history], key


def test_an_event_is_one_row_and_the_users_curves_keep_theirs(run: ServerRun) -> None:
    for name in KEYS:
        rows = run.rows(f"{name}/seconds")
        assert [row["trainer/global_step"] for row in rows] == STEPS
        assert all({f"{name}/{KEYS[name][0]}", "probes/overhead"} <= row.keys() for row in rows)
    assert [row["trainer/global_step"] for row in run.rows("train_loss")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("key", PLOTLY)
def test_pictures_arrive_as_plotly_files_of_plain_numbers(run: ServerRun, key: str) -> None:
    rows = run.rows(key)
    assert [row["trainer/global_step"] for row in rows] == STEPS
    figures = [run.file(row[key]) for row in rows]
    assert all(figure["data"] for figure in figures)
    assert "bdata" not in json.dumps(figures)


@pytest.mark.parametrize("key", ["loss", "val/loss", "accuracy", "val/accuracy"])
def test_interpolation_arrives_as_a_native_chart_with_a_line_an_event(run: ServerRun, key: str) -> None:
    table = f"Custom Chart Tables/interpolation/{key}_table"
    rows = run.rows(table)
    lines = [list(dict.fromkeys(line["line"] for line in run.table(row[table]))) for row in rows]
    assert lines[-1] == ["initialisation", *(f"step {step}" for step in STEPS)]
    assert all(len(line) == index + 2 for index, line in enumerate(lines))
    chart = run.config["_wandb"]["value"]["visualize"][f"interpolation/{key}"]
    assert chart["panel_config"]["panelDefId"] == "wandb/lineseries/v0"


@pytest.mark.parametrize("key", TABLES)
def test_a_tidy_table_arrives_beside_each_picture(run: ServerRun, key: str) -> None:
    rows = run.rows(key)
    assert [row["trainer/global_step"] for row in rows] == STEPS
    table = run.table(rows[-1][key])
    assert TABLES[key] <= table[0].keys()
    assert not any("/" in column for column in table[0])  # with `per_layer=True`, as scalars alone
    assert {row["step"] for row in table} == ({STEPS[-1]} if key == "cka/layers_table" else set(STEPS))


def test_flags_arrive_as_a_table_and_as_one_alert_when_they_rise(run: ServerRun, probes: list[Probe]) -> None:
    (row,) = [row for row in run.table(run.rows("probes/flags")[-1]["probes/flags"]) if row["flag"] == "sharp"]
    assert (row["step"], row["probe"], row["threshold"], row["level"]) == (0, "sharpness", 0.0, "warning")
    assert row["value"] == pytest.approx(probes[3].history[0]["sharpness/lambda_max"])
    assert [(alert["title"], alert["severity"]) for alert in run.alerts] == [("sharpness/flag/sharp", "WARN")]
    assert run.alerts[0]["text"].startswith("lambda_max is")


def test_extremes_arrive_in_the_summary_alone_and_everything_else_as_plain_scalars(
    run: ServerRun, probes: list[Probe]
) -> None:
    for key, value in probes[0].summary.items():
        assert run.summary[key] == pytest.approx(value)
        assert run.rows(key) == []
    assert {"fisher/trace_max", "fisher/explosion_ratio"} <= probes[0].summary.keys()
    last = {key: value for probe in probes for key, value in probe.history[-1].items() if key not in ("step", "epoch")}
    assert {key: run.summary[key] for key in last if key != "probes/overhead"} == {
        key: value for key, value in last.items() if key != "probes/overhead"
    }


def test_settings_arrive_in_the_config(run: ServerRun) -> None:
    settings = run.settings()["probes"]
    assert settings.keys() == KEYS.keys()
    assert {entry["num_samples"] for entry in settings.values()} == {16}


def test_every_file_and_artifact_is_complete_and_the_run_has_ended(run: ServerRun) -> None:
    media = [value for row in run.history for value in row.values() if isinstance(value, dict) and "path" in value]
    assert {value["path"] for value in media} <= run.files.keys()
    assert run.artifacts
    assert all(artifact["committed"] for artifact in run.artifacts)
    assert run.state == "finished"


def test_a_flag_that_stops_the_run_is_named_in_its_summary(wandb_server: Backend, tmp_path: Path) -> None:
    sharp = Sharpness(num_samples=16, sharp_threshold=0.0, on_flag="stop", schedule=[EveryNSteps(1), AtFitEnd()])
    logger = WandbLogger(project="online", save_dir=tmp_path)
    trainer = fit(CASES["cnn"].make, [sharp], max_epochs=5, logger=logger).trainer
    name = logger.experiment.id
    wandb.finish()
    run = wandb_server.runs[name]
    assert trainer.global_step == 1
    assert run.summary["probes/stopped_by"] == "sharpness/flag/sharp"
    assert [alert["title"] for alert in run.alerts] == ["sharpness/flag/sharp"]
    assert [row["trainer/global_step"] for row in run.rows("sharpness/lambda_max")] == [0, 1]
    assert run.state == "finished"


class Talkative(Callback):
    """A user who logs two hundred times a step: through the logger, at steps of his own, and past it."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        for turn in range(200):
            key = ("user/now", "user/past", "user/raw")[turn % 3]
            if key == "user/raw":
                trainer.logger.experiment.log({key: self.calls})
            else:
                trainer.logger.log_metrics({key: self.calls}, step=trainer.global_step if key == "user/now" else turn)
            self.calls += 1


def test_of_50_events_and_10_000_user_calls_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    fisher, user = FisherTrace(num_samples=8, schedule=EveryNSteps(1)), Talkative()
    logger = WandbLogger(save_dir=tmp_path, mode="offline")
    fit(CASES["cnn"].make, [fisher, user], max_epochs=-1, max_steps=50, logger=logger, log_every_n_steps=1)
    wandb.finish()
    (run,) = wandb_offline.read_all(tmp_path)
    assert user.calls == 10_000
    seen = sorted(row[key] for key in ("user/now", "user/past", "user/raw") for row in run.rows(key))
    assert seen == list(range(10_000))
    assert [row["trainer/global_step"] for row in run.rows("fisher/trace")] == list(range(50))
    assert [row["fisher/trace"] for row in run.rows("fisher/trace")] == [e["fisher/trace"] for e in fisher.history]
    assert [row["trainer/global_step"] for row in run.rows("train_loss")] == list(range(50))
    together = [
        row for row in run.history if any("user/" in key for key in row) and any("fisher/" in key for key in row)
    ]
    assert together == []
