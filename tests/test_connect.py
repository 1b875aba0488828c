"""The command that measures between two finished runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_replay import CONFIG, PROJECT, in_project


def test_command_connects_two_runs_of_lightning_cli(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    runs = {}
    for seed, version in ((1, "first"), (2, "second")):
        config = CONFIG.replace("seed_everything: 1", f"seed_everything: {seed}").replace(
            "version: first", f"version: {version}"
        )
        (tmp_path / f"{version}.yaml").write_text(config)
        in_project(tmp_path, "project.py", "fit", "--config", f"{version}.yaml")
        folder = tmp_path / "demo" / version / "checkpoints"
        runs[version] = max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in runs.values()]
    length = sum(float((states[0][name] - states[1][name]).square().sum()) for name in states[0]) ** 0.5

    given = ("--config", f"{tmp_path}/demo/first/config.yaml", "--model", "project.Model", "--data", "project.Data")
    command = ("-m", "lightning_probes.cli", "connect", *given, str(runs["first"]))
    found = numbers(in_project(tmp_path, *command, str(runs["second"]), "--num-alphas", "3", "--path", "bezier"))
    assert found["connectivity/distance"] == pytest.approx(length, rel=1e-6)
    assert {"connectivity/barrier", "connectivity/error_barrier", "connectivity/path/max_loss"} <= found.keys()
    same = numbers(in_project(tmp_path, *command, str(runs["first"])))
    assert (same["connectivity/barrier"], same["connectivity/distance"]) == (0, 0)


def numbers(said: str) -> dict[str, float]:
    rows = (line.partition(" ") for line in said.splitlines())
    return {key: float(value) for key, _, value in rows if key.startswith("connectivity/")}
