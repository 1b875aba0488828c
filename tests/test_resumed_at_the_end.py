"""A run resumed with no batch left to train on: killed behind its last checkpoint, or started again when finished."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNEpochs, EveryNSteps, HTMLReport, Probe
from tests.resumable import measured, resumable
from tests.tester import fit, probe

SAVES: dict[str, dict[str, Any]] = {
    "in the hook after a batch": {"every_n_train_steps": 5},
    "in validation": {"monitor": "val_loss", "save_top_k": -1},
    "at the end of an epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
}
WAYS: dict[str, dict[str, Any]] = {
    "three epochs": {},
    "accumulated gradients": {"accumulate_grad_batches": 5},
    "a number of steps": {"max_steps": 10},
}


def run(directory: Path, probes: list[Probe], saves: dict[str, Any], resume: bool, **arguments: Any) -> list[str]:
    """The hooks of training that came."""
    came: list[str] = []

    class Notes(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            came.append("batch")

        def on_train_epoch_end(self, *_: Any) -> None:
            came.append("end of epoch")

        def on_train_end(self, *_: Any) -> None:
            came.append("end of training")

    saver = ModelCheckpoint(directory, filename="{step}", save_last=True, **saves)
    last = directory / "last.ckpt" if resume else None
    how = {"max_epochs": 3, "enable_checkpointing": True, "ckpt_path": last, **arguments}
    fit(resumable, [Notes(), *probes, saver], directory, **how)
    return came


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("saves", SAVES)
@pytest.mark.parametrize("schedule", [EveryNEpochs(1), AtFitEnd(), AtCheckpoints(1.0)], ids=repr)
def test_history_and_the_last_measurement_are_those_of_the_unbroken_run(
    saves: str, way: str, schedule: Any, tmp_path: Path
) -> None:
    """The last checkpoint may have been written before or after what was due at the end was measured."""
    when = [EveryNSteps(2, stop=2), schedule]
    unbroken, resumed = (probe("sharpness", schedule=when) for _ in range(2))
    run(tmp_path, [unbroken], SAVES[saves], resume=False, **WAYS[way])
    assert "batch" not in run(tmp_path, [resumed], SAVES[saves], resume=True, **WAYS[way])
    assert len(unbroken.history) > 2
    # Lightning counts an epoch as over at one moment or another.
    rows, others = ([{**row, "epoch": None} for row in measured(each)] for each in (resumed, unbroken))
    assert rows == others
    assert resumed.summary == unbroken.summary


def test_the_hooks_that_come_differ_by_the_moment_of_the_checkpoint(tmp_path: Path) -> None:
    """So that the test above is about all of them."""
    found = set()
    for number, (saves, more) in enumerate(
        [("in the hook after a batch", {}), ("in validation", {}), ("in validation", {"val_check_interval": 1})]
    ):
        directory = tmp_path / str(number)
        run(directory, [], SAVES[saves], resume=False, **more)
        found.add(tuple(run(directory, [], SAVES[saves], resume=True, **more)))
    assert len(found) > 1
    assert () in found


def test_the_page_of_a_finished_run_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for resume in (False, True):
        run(tmp_path, [probe("sharpness"), HTMLReport(page)], SAVES["at the end of an epoch"], resume)
        assert "2 measurements, the latest at step 15" in page.read_text()


def test_a_page_with_measurements_is_not_replaced_by_one_without(tmp_path: Path) -> None:
    """Its history is lost with the files beside the run; nothing is due any more."""
    page = tmp_path / "report.html"
    arguments = {"schedule": EveryNSteps(5)}
    run(tmp_path, [probe("sharpness", **arguments), HTMLReport(page)], SAVES["at the end of an epoch"], False)
    written = page.read_text()
    next((tmp_path / "probes").glob("*.jsonl")).unlink()
    with pytest.warns(UserWarning, match=re.escape("the history starts anew")):
        run(tmp_path, [probe("sharpness", **arguments), HTMLReport(page)], SAVES["at the end of an epoch"], True)
    assert page.read_text() == written
