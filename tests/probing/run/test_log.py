import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes import AtCheckpoints, EveryNSteps
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.log import RunLog
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.results import Curve, Flag, Heatmap, Scalar

SCHEDULES = (EveryNSteps(5), AtCheckpoints(2.0))


def event(step, raised=False):
    results = [
        Scalar("p/value", step / 3, 0.1),
        Curve("p/curve", [0, 1], [step, float("nan")]),
        Heatmap("p/map", [[step]], ("a",), ("b",)),
        Flag("p/flag/high", raised, step, 2.0, "too high"),
    ]
    return step, step // 10, {result.key: result for result in results}, {"p/seconds": 0.25}


def begun(directory, at_once=True, initial=None):
    log = RunLog(SCHEDULES, Speaker("Probe 'p'"))
    log.initial = initial
    log.open(directory, "p", at_once)
    return log


def taken_up(state, checkpoint=None):
    """From a checkpoint, which holds what JSON does."""
    log, say = None, Speaker("Probe 'p'")
    log = RunLog(SCHEDULES, say)
    log.take_up(json.loads(json.dumps(state)), checkpoint, Processes())
    return log, say.said


def test_a_log_taken_up_has_the_measurements_of_the_one_before(tmp_path):
    log = begun(tmp_path)
    for step, raised in ((0, False), (5, True), (10, True)):
        log.add(*event(step, raised))
    found, said = taken_up(log.state_dict())
    assert said == set()
    assert found.record.history == log.record.history
    assert found.record.results.keys() == log.record.results.keys()
    assert found.record.risen == log.record.risen == [(5, event(5, True)[2]["p/flag/high"])]
    assert {key: [step for step, _ in trail] for key, trail in found.record.trail.items()} == {
        "p/curve": [0, 5, 10],
        "p/map": [0, 5, 10],
    }


def test_a_flag_that_stood_before_does_not_rise_again(tmp_path):
    log = begun(tmp_path)
    assert [flag.key for flag in log.add(*event(0, True))] == ["p/flag/high"]
    found, _ = taken_up(log.state_dict())
    assert found.add(*event(5, True)) == []


@given(before=st.integers(0, 3), lost=st.integers(0, 3), after=st.integers(0, 3))
def test_what_was_measured_after_the_checkpoint_is_not_taken_up_and_not_kept(before, lost, after, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    log = begun(directory)
    for step in range(before):
        log.add(*event(step))
    state = log.state_dict()
    for step in range(lost):
        log.add(*event(100 + step))
    found, _ = taken_up(state)
    found.open(directory, "p", True)
    for step in range(after):
        found.add(*event(before + step))
    again, said = taken_up(found.state_dict())
    assert said == set()
    assert [row["step"] for row in again.record.history] == list(range(before + after))


def test_each_event_is_in_the_file_when_it_is_added(tmp_path):
    log = begun(tmp_path)
    for step in (0, 5):
        log.add(*event(step))
        lines = (tmp_path / "p.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == step


def test_nothing_is_written_before_a_checkpoint_asks_for_it(tmp_path):
    log = begun(tmp_path / "run", at_once=False, initial={"weight": torch.ones(2)})
    log.add(*event(0))
    assert list(tmp_path.iterdir()) == []
    log.state_dict()
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_the_initialisation_is_kept_once_and_taken_up(tmp_path):
    log = begun(tmp_path, initial={"weight": torch.randn(2, 3), "count": torch.tensor(4)})
    first, second = log.state_dict(), log.state_dict()
    assert first["init"] == second["init"]
    assert len(list(tmp_path.glob("init-*"))) == 1
    found, _ = taken_up(first)
    assert found.initial.keys() == log.initial.keys()
    assert all(torch.equal(found.initial[name], tensor) for name, tensor in log.initial.items())


def test_the_initialisation_is_not_read_again_for_every_checkpoint_but_written_where_it_is_gone(tmp_path, monkeypatch):
    log = begun(tmp_path, initial={"weight": torch.randn(2, 3)})
    (file,) = tmp_path.glob("init-*")
    with monkeypatch.context() as patch:
        patch.setattr("lightning_probes.probing.run.log.keep_state", None)
        assert log.state_dict()["init"]["path"] == str(file)
    file.unlink()
    assert torch.equal(taken_up(log.state_dict())[0].initial["weight"], log.initial["weight"])


def test_an_initialisation_that_can_not_be_written_stays(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="can't be written to"):
        log = begun(tmp_path / "file", initial={"weight": torch.ones(2)})
    assert log.initial["weight"].tolist() == [1, 1]


def test_an_initialisation_whose_file_is_gone_may_come_back_later(tmp_path):
    state = begun(tmp_path, initial={"weight": torch.ones(2)}).state_dict()
    (file,) = tmp_path.glob("init-*")
    hidden = file.rename(tmp_path / "elsewhere")
    found, _ = taken_up(state)
    assert found.initial is None
    again = found.state_dict()
    hidden.rename(file)
    assert taken_up(again)[0].initial is not None


@pytest.mark.parametrize("same_directory", [True, False])
def test_a_file_of_another_run_is_left_alone(same_directory, tmp_path):
    first = begun(tmp_path / "a")
    first.add(*event(0))
    second = begun(tmp_path / ("a" if same_directory else "b"))
    second.add(*event(1))
    third, _ = taken_up(second.state_dict())
    third.open(tmp_path / "a", "p", True)
    third.add(*event(2))
    steps = [[row["step"] for row in taken_up(log.state_dict())[0].record.history] for log in (first, second, third)]
    assert steps == [[0], [1], [1, 2]]


def test_a_log_without_its_file_begins_anew_says_so_and_is_due_where_it_was(tmp_path):
    log = begun(tmp_path)
    log.add(*event(5))
    log.due.last_step = 5
    state = log.state_dict()
    Path(state["journal"]["path"]).unlink()
    with pytest.warns(UserWarning, match="the history starts anew"):
        found, said = taken_up(state)
    assert found.record.history == []
    assert found.due.last_step == 5
    (message,) = said
    assert state["journal"]["path"] in message
    found.open(tmp_path, "p", True)
    found.add(*event(10))
    assert [row["step"] for row in taken_up(found.state_dict())[0].record.history] == [10]


def test_state_holds_what_json_and_weights_only_loading_allow(tmp_path):
    state = begun(tmp_path, initial={"weight": torch.ones(2)}).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state == json.loads(json.dumps(state))
