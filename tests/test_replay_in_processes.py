"""A replay in several processes has the numbers of one, or says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes import FisherTrace, Probe
from lightning_probes.replay import replay
from tests.test_processes import started
from tests.test_replay import STEPS, data, made, probes, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    trained(directory)
    (directory / "6.ckpt").write_bytes(b"damaged")
    return directory


@pytest.fixture(scope="module")
def alone(run: Path) -> list[Probe]:
    measuring = probes()
    with pytest.warns(UserWarning, match="is damaged and was skipped"):
        replay(measuring, made().module, run, data(), keep=False)
    return measuring


@pytest.mark.parametrize(("strategy", "torchrun"), [("ddp", False), ("ddp", True), ("none", True)])
def test_each_process_has_the_numbers_of_one(
    strategy: str, torchrun: bool, run: Path, alone: list[Probe], tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    started("tests.replay_in_processes", 2, str(tmp_path), strategy, "2", torchrun=torchrun)
    for rank in range(2):
        histories = json.loads((tmp_path / f"{rank}.json").read_text())
        for probe in alone:
            assert [row["step"] for row in histories[probe.name]] == STEPS
            for found, expected in zip(histories[probe.name], probe.history, strict=True):
                assert numbers(found) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-6)
    for journal in (tmp_path / "kept").glob("*/*.jsonl"):
        assert [json.loads(line)["step"] for line in journal.read_text().splitlines()] == STEPS
    assert len([*(tmp_path / "kept").iterdir()]) == len(alone)


def numbers(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not key.endswith("/seconds")}


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_end_with_their_numbers_are_refused(strategy: str, run: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"end with it: pass trainer=Trainer\(strategy='ddp'\)"):
        replay([FisherTrace()], made().module, run, data(), trainer=L.Trainer("cpu", strategy=strategy, devices=2))


def test_a_strategy_that_shards_the_model_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = L.Trainer("cpu", logger=False)
    monkeypatch.setattr(trainer.strategy, "__class__", type("FSDPStrategy", (type(trainer.strategy),), {}))
    with pytest.raises(MisconfigurationException, match="FSDPStrategy shards it: use"):
        replay([FisherTrace()], made().module, run, data(), trainer=trainer)
