"""From the runs of a project to a sweep that a real agent tries in the order of the portfolio."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from lightning_probes.cli import main
from lightning_probes.reporting.wandb.runs import runs_of_project
from lightning_probes.studies import portfolio
from tests.test_sweeps import AGENT, EXAMPLE, TINY
from tests.wandb_backend import ENTITY, Backend

PROJECT = "tasks"
LOSSES = {"digits": {0.01: 0.0, 0.02: 1.0, 0.05: 0.4}, "letters": {0.01: 1.0, 0.02: 0.0, 0.05: 0.4}}


@pytest.fixture(scope="module")
def project(wandb_server: Backend, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs as real projects have them: finished ones, one that failed, one that diverged, and an old one."""
    folder = tmp_path_factory.mktemp("runs")

    def run(config: dict[str, Any], summary: dict[str, Any], exit_code: int = 0) -> None:
        each = wandb.init(project=PROJECT, dir=folder, config=config)
        each.log(summary)
        each.finish(exit_code=exit_code)

    for task, losses in LOSSES.items():
        for lr, loss in losses.items():
            run({"dataset": task, "model": {"lr": lr}, "seed": 0}, {"val/loss": loss, "epoch": 4})
    run({"dataset": "digits", "model": {"lr": 9.0}, "seed": 0}, {"epoch": 0}, exit_code=1)
    run({"dataset": "letters", "model": {"lr": 9.0}, "seed": 0}, {"val/loss": float("nan"), "epoch": 4})
    run({"dataset": "digits", "seed": 0}, {"val/loss": -1.0, "epoch": 4})
    return f"{ENTITY}/{PROJECT}"


def test_runs_of_a_project_have_config_summary_and_state(project: str) -> None:
    found = runs_of_project(project)
    assert [run.state for run in found] == [*["finished"] * 6, "failed", "finished", "finished"]
    assert found[0].config == {"dataset": "digits", "model": {"lr": 0.01}, "seed": 0}
    assert found[1].summary["val/loss"] == 1.0
    assert math.isnan(float(found[7].summary["val/loss"]))


def test_all_pages_of_a_project_are_read(wandb_server: Backend, project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    whole = wandb_server.on_Runs
    monkeypatch.setattr(
        wandb_server, "on_Runs", lambda **given: asked.append(given) or whole(**{**given, "perPage": 4})
    )
    assert len(runs_of_project(project)) == 9
    assert len(asked) == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_run_that_still_goes_on_is_left_out(wandb_server: Backend, project: str, tmp_path: Path) -> None:
    config = {"dataset": "digits", "model": {"lr": 7.0}}
    with wandb.init(project=PROJECT, dir=tmp_path, config=config, id="going") as run:
        run.log({"val/loss": -5.0})
        with pytest.warns(UserWarning, match=r"1 run \(going\) still going on and left out"):
            found = portfolio(project, task="dataset", metric="val/loss", configs=["model.lr"])
    assert [config["model.lr"] for config in found.configs] == [0.05, 0.01, 0.02]
    with wandb_server.lock:
        del wandb_server.runs["going"]


@pytest.mark.parametrize(
    ("path", "words"),
    [(f"{ENTITY}/nowhere", "can't be read from W&B .*Could not find project"), (f"{ENTITY}/empty", "holds no runs")],
)
def test_project_without_runs_is_refused_in_one_sentence(wandb_server: Backend, path: str, words: str) -> None:
    wandb_server.projects.add("empty")
    with pytest.raises(ValueError, match=words):
        portfolio(path, task="dataset", metric="val/loss", configs=["model.lr"])


def test_no_project_is_read_where_wandb_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ValueError, match=r"WANDB_MODE is 'offline'.*pass the path of a CSV file"):
        portfolio(f"{ENTITY}/{PROJECT}", task="dataset", metric="val/loss", configs=["model.lr"])


@pytest.mark.slow
def test_agent_tries_the_portfolio_of_a_project_in_order(
    wandb_server: Backend, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The command, `wandb sweep`, `wandb agent`, and LightningCLI, which takes `--config=portfolio/0.yaml` as it is."""
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "sweep"))
    monkeypatch.chdir(folder)
    main([
        "portfolio", "--entity", ENTITY, "--project", PROJECT, "--task", "dataset", "--keys", "model.lr",
        "--size", "2", "--out", "portfolio", "--sweep", "sweep.yaml", "--base", "base.yaml", "--halving", "16",
    ])  # fmt: skip
    assert "left out" in capsys.readouterr().err
    content = yaml.safe_load(Path("sweep.yaml").read_text())
    content["command"][-1:] = [*TINY, "--model.lr=0.5", "${args}"]  # the portfolio wins over what stands before it
    sweep = wandb_server.sweeps[wandb.sweep(content, project=PROJECT)]

    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1", "WANDB_SILENT": "false",
    }  # fmt: skip
    command = [sys.executable, "-c", AGENT, "agent", f"{ENTITY}/{PROJECT}/{sweep.name}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    assert [run.state for run in sweep.trials] == ["finished", "finished"]
    settings = [run.settings() for run in sweep.trials]
    assert [each["config"] for each in settings] == ["portfolio/0.yaml", "portfolio/1.yaml"]
    assert [each["lr"] for each in settings] == [0.05, 0.01]
    assert [each["batch_size"] for each in settings] == [64, 64]
    assert all(len(run.rows("val/loss")) == 3 for run in sweep.trials)
    assert sweep.config["early_terminate"] == {"type": "hyperband", "max_iter": 16, "s": 2, "eta": 4}
