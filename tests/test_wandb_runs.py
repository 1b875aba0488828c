"""The ways in which people start W&B runs: each event is one row at the Trainer's step, in the run it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from lightning_probes import EveryNSteps, Probe
from lightning_probes.testing.zoo import CASES
from tests import wandb_offline
from tests.tester import PROBES, fit, probe
from tests.wandb_offline import OfflineRun
from tests.wandb_server import serving

CNN = CASES["cnn"].make
X_AXIS = "trainer/global_step"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.finish()


def every() -> list[Probe]:
    return [probe(kind, num_samples=16) for kind in PROBES]


def train(probes: list[Probe], root: Path, logger: WandbLogger, **options: Any) -> None:
    fit(CNN, probes, root / "fit", logger=logger, **options)


def assert_holds(run: OfflineRun, probes: list[Probe], prefix: str = "") -> None:
    """Each event of each probe is one row with all its numbers, at its step, on an axis that was defined exactly."""
    for each in probes:
        rows = run.rows(f"{prefix}{each.name}/seconds")
        assert [row[X_AXIS] for row in rows] == [entry["step"] for entry in each.history]
        for row, entry in zip(rows, each.history, strict=True):
            numbers = {key: value for key, value in entry.items() if key not in ("step", "epoch")}
            assert {key: row[f"{prefix}{key}"] for key in numbers} == numbers
        assert {run.definitions[key]["step_metric"] for key in row if f"{each.name}/" in key} == {X_AXIS}


@pytest.mark.parametrize("handed_over", [False, True])
def test_run_that_exists_already_is_used(handed_over: bool, tmp_path: Path) -> None:
    run = wandb.init(dir=tmp_path)
    probes = every()
    if handed_over:
        train(probes, tmp_path, WandbLogger(experiment=run))
    else:
        with pytest.warns(UserWarning, match="already in progress"):
            train(probes, tmp_path, WandbLogger())
    run.finish()
    (found,) = wandb_offline.read_all(tmp_path)
    assert found.globs == []
    assert_holds(found, probes)


def test_folds_of_one_run_are_told_apart_by_their_prefix(tmp_path: Path) -> None:
    run = wandb.init(dir=tmp_path)
    folds = {f"fold{k}": every() for k in range(2)}
    for name, probes in folds.items():
        train(probes, tmp_path / name, WandbLogger(experiment=run, prefix=name))
    run.finish()
    (found,) = wandb_offline.read_all(tmp_path)
    for name, probes in folds.items():
        assert_holds(found, probes, f"{name}-")
        assert f"{name}-fisher/trace_max" in found.summary
        assert f"{name}-interpolation/loss" in found.config["_wandb"]["visualize"]
        assert found.definitions[f"Custom Chart Tables/{name}-interpolation/loss_table"]["hidden"]
    assert not [key for row in found.history for key in row if key.split("/")[0] in PROBES]


def test_folds_of_one_process_can_each_have_a_run(tmp_path: Path) -> None:
    folds = [every() for _ in range(3)]
    for k, probes in enumerate(folds):
        train(probes, tmp_path / str(k), WandbLogger(save_dir=tmp_path / str(k), name=f"fold{k}"))
        wandb.finish()
    for k, probes in enumerate(folds):
        (found,) = wandb_offline.read_all(tmp_path / str(k))
        assert_holds(found, probes)


def test_disabled_run_leaves_nothing_behind_and_probes_measure(tmp_path: Path) -> None:
    probes = every()
    train(probes, tmp_path, WandbLogger(save_dir=tmp_path, mode="disabled"))
    assert all(len(each.history) == 2 for each in probes)
    assert list(tmp_path.rglob("run-*.wandb")) == []


def test_resumed_run_of_the_server_has_each_event_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two epochs, then two more with the same id, from the checkpoint."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        for epochs in (2, 4):
            fisher = probe("fisher", schedule=EveryNSteps(4))
            logger = WandbLogger(project="resumed", id="one", resume="allow", save_dir=tmp_path)
            keep = ModelCheckpoint(tmp_path / "kept", save_last=True)
            last = tmp_path / "kept" / "last.ckpt"
            fit(CNN, [fisher, keep], tmp_path / "fit", logger=logger, max_epochs=epochs,
                enable_checkpointing=True, ckpt_path=last if last.exists() else None)  # fmt: skip
            wandb.finish()
        assert [entry["step"] for entry in fisher.history] == [0, 4, 8, 12, 16]
        rows = server.runs["one"].rows("fisher/trace")
        found = [(row[X_AXIS], row["fisher/trace"]) for row in rows]
        assert found == [(entry["step"], entry["fisher/trace"]) for entry in fisher.history]
        assert server.failures == []
