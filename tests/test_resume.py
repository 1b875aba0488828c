"""A run that goes on from a checkpoint measures what a run never interrupted does, at the same steps."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_probes import AtCheckpoints, AtFitEnd, Flag, LogSpacedSteps, Probe
from tests.resumable import begin, go_on, measured, resumable
from tests.tester import assert_same, fingerprint, fit, probe

WHEN = [LogSpacedSteps(3), AtCheckpoints(1.0), AtFitEnd()]
# With each kind of state that a break may lose; the shared tester resumes every other one by itself.
KINDS = ("fisher", "interpolation", "cka", "sharpness", "connectivity", "plane", "dropout", "regime")


def every(**arguments: Any) -> list[Probe]:
    return [probe(kind, num_samples=16, schedule=WHEN, **arguments.get(kind, {})) for kind in KINDS]


def assert_same_measurements(found: Probe, expected: Probe) -> None:
    assert [row["step"] for row in found.history] == [row["step"] for row in expected.history]
    for row, other in zip(measured(found), measured(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-9)
    assert found.summary == pytest.approx(expected.summary)
    trails = [each.progress.log.record.trail for each in (found, expected)]
    assert trails[0].keys() == trails[1].keys()
    for key in trails[0]:
        for (step, result), (other_step, other) in zip(trails[0][key], trails[1][key], strict=True):
            assert step == other_step
            values = [r.y if hasattr(r, "y") else r.values for r in (result, other)]
            np.testing.assert_array_equal(*values)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[Probe]:
    probes = every()
    go_on(tmp_path_factory.mktemp("unbroken"), None, probes)
    assert [row["step"] for row in probes[0].history] == [0, 1, 2, 5, 7, 10, 14, 15]
    return probes


def test_resumed_run_measures_what_a_run_never_interrupted_does(tmp_path: Path, unbroken: list[Probe]) -> None:
    checkpoint, resumed = begin(tmp_path, every()), every()
    go_on(tmp_path, checkpoint, resumed)
    for found, expected in zip(resumed, unbroken, strict=True):
        assert_same_measurements(found, expected)


def test_measurement_that_a_checkpoint_asked_for_is_pending_again(tmp_path: Path) -> None:
    last = probe("fisher", schedule=AtCheckpoints())
    checkpoint, resumed = begin(tmp_path, [last]), probe("fisher", schedule=AtCheckpoints(2.0))
    assert [row["step"] for row in last.history] == [7]  # at the end of the fit, after the checkpoint was written
    go_on(tmp_path, checkpoint, [resumed])
    assert [row["step"] for row in resumed.history] == [7, 14]


def test_resumed_twice_from_one_checkpoint_takes_nothing_from_the_first_time(
    tmp_path: Path, unbroken: list[Probe]
) -> None:
    checkpoint = begin(tmp_path, every())
    for _ in range(2):  # the second finds later lines in the file
        resumed = every()
        go_on(tmp_path, checkpoint, resumed)
    assert_same_measurements(resumed[0], unbroken[0])


def test_files_may_move_along_with_the_checkpoint(tmp_path: Path, unbroken: list[Probe]) -> None:
    begin(tmp_path / "here", every())
    shutil.move(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there" / "checkpoints").mkdir()
    checkpoint = shutil.move(tmp_path / "there" / "step=7.ckpt", tmp_path / "there" / "checkpoints")
    resumed = every()
    go_on(tmp_path, Path(checkpoint), resumed)
    assert_same_measurements(resumed[1], unbroken[1])


def test_flags_keep_their_state_over_a_break(tmp_path: Path) -> None:
    """One that stood before the break does not rise again after it."""
    arguments = {"fisher": {"explosion_factor": 1e-3}}
    checkpoint, resumed = begin(tmp_path, every(**arguments)), every(**arguments)
    go_on(tmp_path, checkpoint, resumed)
    (fisher, *_) = resumed
    assert all(row["fisher/flag/explosion"] for row in fisher.history)
    assert [(step, flag.key) for step, flag in fisher.progress.log.record.risen] == [(0, "fisher/flag/explosion")]
    assert isinstance(fisher.results["fisher/flag/explosion"], Flag)


def test_checkpoint_grows_by_little_and_loads_as_weights_only(tmp_path: Path) -> None:
    with_probes, without = begin(tmp_path / "with", every()), begin(tmp_path / "without", [])
    assert with_probes.stat().st_size - without.stat().st_size < len(KINDS) * 2_000
    states = torch.load(with_probes, weights_only=True)["callbacks"]
    assert set(KINDS) <= set(states)


def test_measurements_lie_beside_the_run_one_event_a_line(tmp_path: Path) -> None:
    probes = every()
    begin(tmp_path, probes)
    for each in probes:
        lines = (tmp_path / "probes" / f"{each.name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [row["step"] for row in each.history]
    (initial,) = (tmp_path / "probes").glob("init-*.pt")  # one serves both that need it
    assert set(torch.load(initial, weights_only=True)) == set(resumable().module.state_dict())


def test_run_that_keeps_no_files_gets_none_from_probes(tmp_path: Path) -> None:
    fit(resumable, every(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_saved_by_hand_is_complete_without_a_logger_or_callback(
    tmp_path: Path, unbroken: list[Probe]
) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "own.ckpt")

    fit(resumable, [*every(), Saves()], tmp_path, max_epochs=3, max_steps=7)
    resumed = every()
    go_on(tmp_path, tmp_path / "own.ckpt", resumed)
    assert_same_measurements(resumed[1], unbroken[1])


def said_of(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.message for record in caplog.records if what in record.message]


@pytest.mark.parametrize("fault", ["missing", "foreign", "cut off"])
def test_without_its_file_the_initialisation_is_unknown_and_what_needs_none_goes_on(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = begin(tmp_path, every())
    (file,) = (tmp_path / "probes").glob("init-*.pt")
    if fault == "missing":
        file.unlink()
    elif fault == "foreign":
        torch.save({name: tensor + 1 for name, tensor in torch.load(file).items()}, file)
    else:
        file.write_bytes(file.read_bytes()[:200])
    resumed = every()

    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        go_on(tmp_path, checkpoint, resumed)

    said = said_of(caplog, "init_state=")
    assert {message.split()[0] for message in said} == {"InitInterpolation", "LayerCKA"}
    assert len(said) == 2
    rows = {each.name: each.history for each in resumed}
    assert {name: len(history) for name, history in rows.items() if name != "interpolation"} == dict.fromkeys(
        rows.keys() - {"interpolation"}, 8
    )
    assert "cka/to_init_mean" in rows["cka"][0]
    assert "cka/to_init_mean" not in rows["cka"][-1]
    assert rows["interpolation"][-1]["step"] < 7  # what was measured before is known


def test_without_the_measurements_file_the_history_begins_anew(tmp_path: Path) -> None:
    checkpoint = begin(tmp_path, every())
    (tmp_path / "probes" / "fisher.jsonl").write_text("{}\n")
    resumed = every()
    with pytest.warns(UserWarning, match=r"the earlier measurements were not found at .*fisher\.jsonl"):
        go_on(tmp_path, checkpoint, resumed)
    assert [row["step"] for row in resumed[0].history] == [7, 10, 14, 15]
    assert (tmp_path / "probes" / "fisher.jsonl").read_text() == "{}\n"  # whoever's it is


def test_from_a_checkpoint_without_probes_the_initialisation_is_as_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    initial = {name: tensor.clone() for name, tensor in fit(resumable, max_steps=0).module.state_dict().items()}
    checkpoint = begin(tmp_path, [])
    unknown, given = every(), every(interpolation={"init_state": initial}, cka={"init_state": initial})

    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        go_on(tmp_path, checkpoint, unknown)
        assert len(said_of(caplog, "init_state=")) == 2
        run = go_on(tmp_path, checkpoint, given)
        assert len(said_of(caplog, "init_state=")) == 2

    assert unknown[1].history == []
    parameters = dict(run.module.named_parameters())
    moved = torch.cat([(p.detach() - initial[name]).flatten() for name, p in parameters.items()]).norm()
    assert given[1].history[-1]["interpolation/distance"] == pytest.approx(float(moved), rel=1e-5)


def test_resumed_training_is_the_same_with_and_without_probes(tmp_path: Path) -> None:
    checkpoint = begin(tmp_path / "first", [])
    runs = []
    for name, probes in (("with", every()), ("without", [])):
        (tmp_path / name).mkdir()
        runs.append(go_on(tmp_path / name, checkpoint, probes))
    assert_same(*map(fingerprint, runs))


def test_checkpoint_made_with_probes_loads_without_them(tmp_path: Path) -> None:
    go_on(tmp_path, begin(tmp_path, every()), [])
