"""Scalars reach every logger, pictures those that take them, and without any logger the probe keeps them itself."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lightning_probes import AtFitEnd, EveryNSteps, Probe
from lightning_probes.testing.zoo import CASES
from tests import wandb_offline
from tests.tester import PROBES, fit, probe

ROOT = Path(__file__).parent.parent
CNN = CASES["cnn"]  # classification with BatchNorm and validation data: every key of the table applies to it
SCALARS = {
    "fisher/trace", "fisher/trace_se", "fisher/loss", "fisher/seconds",
    "interpolation/monotonic", "interpolation/max_rise", "interpolation/max_rise_se", "interpolation/plateau_fraction",
    "interpolation/distance", "interpolation/distance_normalized", "interpolation/bn_gap", "interpolation/seconds",
    "cka/to_init_mean", "cka/off_diagonal_mean", "cka/null_p95", "cka/seconds",
    "sharpness/lambda_max", "sharpness/lambda_max_residual", "sharpness/lambda_max_se", "sharpness/stability_ratio",
    "sharpness/sam", "sharpness/sam_se", "sharpness/loss", "sharpness/seconds",
    "sharpness/flag/edge_of_stability", "sharpness/flag/unstable", "probes/overhead",
    *(f"connectivity/{split}{error}{kind}{se}"
      for split in ("", "val/") for error in ("", "error_") for kind in ("barrier", "barrier_mean", "rise_above_ends")
      for se in ("", "_se")),
    "connectivity/distance", "connectivity/bn_gap", "connectivity/seconds",
    "plane/nonconvexity", "plane/flat_share", "plane/kink_gap", "plane/centre_loss", "plane/seconds",
    "dropout/rise", "dropout/rise_se", "dropout/rise_best", "dropout/suffix_max", "dropout/loss", "dropout/error_rise",
    "dropout/error_rise_se", "dropout/seconds",
    *(f"regime/{key}" for key in (
        "loss", "lambda_max", "lambda_max_residual", "stability_ratio", "regime", "loss_ratio", "peak_loss_ratio",
        "lambda_ratio", "flag/catapult", "flag/divergent", "seconds",
    )),
    *(f"linear/{key}" for key in (
        "last", "last_se", "best", "best_se", "best_depth", "null_p95", "chance", "head", "gap", "seconds",
    )),
    *(f"gradient_flow/{key}" for key in (
        "decades", "slope", "stream_decades", "dead", "flag/vanishing", "flag/exploding", "seconds",
    )),
    *(f"head2toe/{key}" for key in ("gap", "gap_se", "kept", "accuracy", "last", "residual", "seconds")),
    *(f"{name}/flag/{flag}" for name in PROBES for flag in ("nonfinite", "not_converged")),
}  # fmt: skip
CURVES = {
    *(f"interpolation/{key}" for key in ("loss", "val/loss", "accuracy", "val/accuracy")),
    *(f"connectivity/{key}" for key in ("loss", "val/loss", "error", "val/error")),
    "linear/depth", "gradient_flow/norm", "head2toe/relevance",
}  # fmt: skip
DETAILS = {f"connectivity/{key}" for key in ("val/loss", "error", "val/error")}  # curves without a native chart
FIGURES = {
    "fisher/trace_over_steps", "fisher/trace_over_loss", "cka/layers", "cka/to_init",
    "sharpness/stability_ratio_over_steps", "sharpness/lambda_max_over_steps",
    "connectivity/barrier_over_steps", "connectivity/error_barrier_over_steps", "plane/loss",
    "dropout/rise_over_steps", "dropout/best_over_steps", "regime/relative_over_steps", "linear/accuracy",
}  # fmt: skip


def every(**arguments: Any) -> list[Probe]:
    return [probe(kind, num_samples=16, **arguments) for kind in PROBES]


def measured(probes: list[Probe]) -> dict[int, dict[str, float]]:
    """What the probes say they measured, by step."""
    steps: dict[int, dict[str, float]] = {}
    for each in probes:
        for entry in each.history:
            values = {key: value for key, value in entry.items() if key not in ("step", "epoch", "probes/overhead")}
            steps.setdefault(int(entry["step"]), {}).update(values)
    return steps


def test_without_a_logger_the_probe_keeps_everything() -> None:
    probes = every()

    run = fit(CNN.make, probes)

    assert run.trainer.loggers == []
    assert list(run.directory.iterdir()) == []
    for each in probes:
        assert [(entry["step"], entry["epoch"]) for entry in each.history] == [(2, 0), (5, 1)]
        assert all(isinstance(value, (int, float)) for entry in each.history for value in entry.values())
    assert {key for entry in measured(probes).values() for key in entry} == SCALARS - {"probes/overhead"}
    assert {picture for each in probes for picture in drawn(each)} == CURVES | FIGURES


def drawn(each: Probe) -> list[str]:
    keys = [picture.key for picture in each.pictures()]
    assert all(each.figure(key).data for key in keys)
    return keys


def test_a_fit_without_a_logger_imports_nothing_to_draw_with(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from tests.tester import PROBES, fit, probe
from lightning_probes.testing.zoo import CASES

fit(CASES["cnn"].make, [probe(kind, num_samples=16) for kind in PROBES], Path({str(tmp_path)!r}))
print([name for name in ("plotly", "wandb") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_fast_dev_run(tmp_path: Path) -> None:
    probes = every()

    run = fit(CNN.make, probes, fast_dev_run=True, logger=CSVLogger(tmp_path))

    assert run.trainer.global_step == 1
    assert all([entry["step"] for entry in each.history] == [1] for each in probes)
    assert list(tmp_path.rglob("*.csv")) == []


def test_csv_logger_has_every_scalar_at_its_step(tmp_path: Path) -> None:
    probes = every()

    fit(CNN.make, probes, logger=CSVLogger(tmp_path))

    (path,) = tmp_path.rglob("metrics.csv")
    found: dict[int, dict[str, float]] = {}
    for row in csv.DictReader(path.open()):
        values = {key: float(value) for key, value in row.items() if value and key.split("/")[0] in PROBES}
        found.setdefault(int(row["step"]), {}).update(values)
    assert {step: values for step, values in found.items() if values} == {
        step: pytest.approx(values) for step, values in measured(probes).items()
    }


def test_tensorboard_has_scalars_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    probes = every(schedule=AtFitEnd())

    fit(CNN.make, probes, logger=TensorBoardLogger(tmp_path))

    (path,) = tmp_path.rglob("events.out.*")
    events = EventAccumulator(str(path)).Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    for step, values in measured(probes).items():
        logged = {key: event.value for key in values for event in events.Scalars(key) if event.step == step}
        assert logged == pytest.approx(values)
    assert set(events.Tags()["images"]) == CURVES | FIGURES
    assert {event.step for key in CURVES | FIGURES for event in events.Images(key)} == {5}


@pytest.fixture
def offline(tmp_path: Path) -> Any:
    """An offline W&B logger; the run is finished when the test is."""
    import wandb

    yield WandbLogger(project="probes", save_dir=tmp_path, offline=True)
    wandb.finish()


def test_wandb_has_every_key_of_the_table(offline: WandbLogger, tmp_path: Path) -> None:
    import wandb

    probes = every()

    fit(CNN.make, probes, logger=offline)
    wandb.finish()

    (run,) = wandb_offline.read_all(tmp_path)
    keys = {key for row in run.history for key in row}
    assert keys >= SCALARS
    for step, values in measured(probes).items():
        rows = [row for row in run.history if row.get("trainer/global_step") == step]
        logged = {key: row[key] for row in rows for key in values if key in row}
        assert logged == pytest.approx(values)
    assert keys >= FIGURES
    assert keys >= {f"Custom Chart Tables/{key}_table" for key in CURVES - DETAILS}
    assert keys >= {f"{key}{ending}" for key in DETAILS for ending in ("_coloured", "_table")}
    assert not keys & {f"Custom Chart Tables/{key}_table" for key in DETAILS}
    assert set(run.summary) >= {"fisher/trace_max", "fisher/explosion_ratio"}
    assert not any("trace_max" in key for key in keys)
    assert set(run.config["probes"]) == set(PROBES)
    for name, settings in run.config["probes"].items():
        assert settings["probe"] == PROBES[name].__name__
        assert {"seed", "num_samples", "data", "precision", "version"} <= set(settings)
    assert run.config["probes"]["interpolation"]["batch_norm"] == "recalibrate"
    assert all(math.isfinite(value) for row in run.history for value in row.values() if isinstance(value, float))


def test_user_curves_share_the_axis_of_probes(offline: WandbLogger, tmp_path: Path) -> None:
    """No row is dropped or shifted: the user's loss has a row a step, probes the steps of their events."""
    import wandb

    fit(CNN.make, [probe("fisher", num_samples=8, schedule=EveryNSteps(1))], logger=offline)
    wandb.finish()

    (run,) = wandb_offline.read_all(tmp_path)
    assert [row["trainer/global_step"] for row in run.rows("train_loss")] == [0, 1, 2, 3, 4]
    assert [row["trainer/global_step"] for row in run.rows("fisher/trace")] == [0, 1, 2, 3, 4]


def test_several_loggers_get_the_same(tmp_path: Path) -> None:
    loggers: list[Logger] = [CSVLogger(tmp_path / name) for name in ("a", "b")]

    fit(CNN.make, [probe("fisher", num_samples=8)], logger=loggers)

    contents = [path.read_text() for path in sorted(tmp_path.rglob("metrics.csv"))]
    assert len(contents) == 2
    assert contents[0] == contents[1]
    assert "fisher/trace" in contents[0]


def test_checkpoints_and_early_stopping_can_monitor_a_probe(tmp_path: Path) -> None:
    measured_at_epochs = probe("sharpness", quantities=("sam",), schedule=EveryNSteps(1))
    best = ModelCheckpoint(tmp_path, monitor="sharpness/sam", save_top_k=1, every_n_epochs=1)
    stop = EarlyStopping("sharpness/sam", patience=100, check_on_train_epoch_end=True)

    fit(CNN.make, [measured_at_epochs, best, stop], enable_checkpointing=True, max_epochs=3)

    values = [entry["sharpness/sam"] for entry in measured_at_epochs.history if entry["step"] in (4, 9, 14)]
    assert float(best.best_model_score) == pytest.approx(min(values))
    assert float(stop.best_score) == pytest.approx(min(values))


def test_flag_can_stop_the_run() -> None:
    sharp = probe("sharpness", sharp_threshold=0.0, on_flag="stop", schedule=[EveryNSteps(1), AtFitEnd()])

    with pytest.warns(UserWarning, match="sharpness/flag/sharp: lambda_max is"):
        run = fit(CASES["tuple_batch"].make, [sharp], max_epochs=5)

    assert run.trainer.global_step == 1


def test_overhead_has_the_time_of_reporting_too(tmp_path: Path) -> None:
    class Slow(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            time.sleep(0.05 if "fisher/trace" in metrics else 0.0)
            super().log_metrics(metrics, step)

    fisher = probe("fisher", num_samples=8, schedule=EveryNSteps(1))
    fit(CNN.make, [fisher], logger=Slow(tmp_path))
    measured = sum(entry["fisher/seconds"] for entry in fisher.history)
    assert fisher.seconds >= measured + 0.05 * len(fisher.history)
