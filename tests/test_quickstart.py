"""The newcomer's first command, and what it leaves in the W&B run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, chromium
from tests.wandb_offline import OfflineRun, read

EXAMPLE = Path(__file__).parents[1] / "examples" / "quickstart.py"

SCALARS = {
    "fisher": ("trace", "trace_se", "loss"),
    "interpolation": (
        "monotonic", "max_rise", "max_rise_se", "plateau_fraction", "distance", "distance_normalized", "bn_gap",
    ),
    "cka": ("to_init_mean", "null_p95"),
    "sharpness": (
        "lambda_max", "lambda_max_residual", "lambda_max_se", "stability_ratio", "sam", "loss",
        "flag/edge_of_stability", "flag/unstable",
    ),
}  # fmt: skip
PICTURES = {
    "fisher": ("trace_over_steps", "trace_over_loss"),
    "interpolation": (),
    "cka": ("layers", "to_init"),
    "sharpness": ("stability_ratio_over_steps", "lambda_max_over_steps"),
}
CHARTS = tuple(  # native line series keep their data in a table
    f"Custom Chart Tables/interpolation/{key}_table" for key in ("loss", "val/loss", "accuracy", "val/accuracy")
)
COMMON = ("seconds", "flag/nonfinite", "flag/not_converged")
SUMMARY = ("fisher/trace_max", "fisher/explosion_ratio")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, str(EXAMPLE), "--epochs", "3", "--out", str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out", done.stdout


@pytest.fixture(scope="module")
def run(quickstart: tuple[Path, str]) -> OfflineRun:
    [folder] = (quickstart[0] / "wandb").glob("offline-run-*")
    return read(folder)


def test_offline_run_holds_every_key_of_every_probe(run: OfflineRun) -> None:
    logged = {key for row in run.history for key in row}
    expected = {f"{p}/{key}" for p, keys in SCALARS.items() for key in (*keys, *COMMON)} | {"probes/overhead"}
    assert expected <= logged
    pictures = {f"{p}/{key}" for p, keys in PICTURES.items() for key in keys} | set(CHARTS)
    assert pictures <= logged
    assert set(SUMMARY) <= set(run.summary)
    assert not set(SUMMARY) & logged


def test_every_event_is_one_row_on_the_axis_of_the_training_curves(run: OfflineRun) -> None:
    for probe in SCALARS:
        steps = [row["trainer/global_step"] for row in run.history if f"{probe}/seconds" in row]
        assert steps == sorted(set(steps))
        assert steps[-1] > 60
    assert any("train/loss" in row for row in run.history)


def test_config_records_the_settings_of_each_probe(run: OfflineRun) -> None:
    settings = run.config["probes"]
    assert set(settings) == set(SCALARS)
    assert settings["sharpness"]["num_samples"] == settings["sharpness"]["train_samples"] == 512
    assert settings["interpolation"]["batch_norm"] == "recalibrate"


def test_it_ends_with_a_table_the_run_and_the_command_that_syncs_it(quickstart: tuple[Path, str]) -> None:
    out, printed = quickstart
    for name in ("FisherTrace", "InitInterpolation", "LayerCKA", "Sharpness"):
        assert re.search(rf"^{name} +\S+ = [\d.e+-]+.* \d+ × +[\d.]+ *$", printed, flags=re.MULTILINE), printed
    assert re.search(r"^sync it  wandb sync .*offline-run-", printed, flags=re.MULTILINE)
    assert (out / "quickstart.png").stat().st_size > 20_000
    found = re.search(r"^report   file://(\S+)$", printed, flags=re.MULTILINE)
    assert found is not None, printed
    assert Path(found[1]).samefile(out / "report.html")


def test_its_report_shows_every_picture(quickstart: tuple[Path, str]) -> None:
    page = (quickstart[0] / "report.html").read_text()
    curves = ("loss", "val/loss", "accuracy", "val/accuracy")
    keys = [f"{probe}/{key}" for probe, keys in PICTURES.items() for key in keys] + [
        f"interpolation/{k}" for k in curves
    ]
    assert sorted(re.findall(r'data-key="([^"]+)"', page)) == sorted(keys)
    assert "<dd>finished</dd>" in page


# A browser can't be a requirement of the package; .ci/run installs one, so CI never skips.
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium")
def test_its_report_is_drawn_by_a_browser_that_asks_for_nothing_else(
    quickstart: tuple[Path, str], tmp_path: Path
) -> None:
    page = quickstart[0] / "report.html"
    with chromium(tmp_path) as tab:
        tab.open(page)
        drawn = "[...document.querySelectorAll('.plot')].filter((plot) => plot.querySelector('svg')).length"
        assert tab.value(drawn) == sum(map(len, PICTURES.values())) + 4
        assert not tab.errors
        assert {address for address in tab.requests if not address.startswith("data:")} == {page.as_uri()}
