"""A run killed at any moment, and started again from its last checkpoint, measures what an unbroken run does."""

from __future__ import annotations

import csv
import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest

from tests import kill_and_resume
from tests.wandb_offline import read_all

# Forked from a process that has imported everything, for each would take seconds over that.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([kill_and_resume.__name__])


def start(directory: Path, at: str | None = None, seconds: float | None = None, all_kinds: bool = False) -> bool:
    """Fit in a process of its own, killed after some seconds if it still runs; whether it was killed, by whomever."""
    directory.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=kill_and_resume.fit_until_killed, args=(directory, at, "", None, all_kinds))
    process.start()
    process.join(120 if seconds is None else seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), "the fit ended in an error"
    return process.exitcode == -9


def left_by(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / kill_and_resume.DONE).read_text())
    return content


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("unbroken")
    assert not start(directory)
    return left_by(directory)


def assert_same_measurements(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["weights"] == expected["weights"]
    for name, rows in expected["history"].items():
        assert [row["step"] for row in found["history"][name]] == [row["step"] for row in rows]
        for row, other in zip(found["history"][name], rows, strict=True):
            kept = {key for key in other if not key.endswith(("/seconds", "/overhead"))}
            assert {key: row[key] for key in kept} == pytest.approx({key: other[key] for key in kept}, rel=1e-9)
        assert found["summary"][name] == pytest.approx(expected["summary"][name])


@pytest.mark.parametrize("at", ["training 2", "measuring 5", "measuring 8", "saving 7", "training 9"])
def test_killed_once_at_a_telling_moment(at: str, unbroken: dict[str, Any], tmp_path: Path) -> None:
    assert start(tmp_path, at)
    assert not start(tmp_path)
    assert_same_measurements(left_by(tmp_path), unbroken)


def test_of_a_fit_killed_in_its_middle_every_callback_measures_the_same(tmp_path: Path) -> None:
    assert not start(tmp_path / "unbroken", all_kinds=True)
    assert start(tmp_path / "killed", "measuring 10", all_kinds=True)
    assert not start(tmp_path / "killed", all_kinds=True)
    expected = left_by(tmp_path / "unbroken")
    assert {name: len(rows) for name, rows in expected["history"].items()} == {
        **dict.fromkeys(("regime", "linear", "gradient_flow", "head2toe", "residual", "attention"), 7), "gradients": 8,
    }  # fmt: skip
    assert_same_measurements(left_by(tmp_path / "killed"), expected)


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_at_random_moments(seed: int, unbroken: dict[str, Any], tmp_path: Path) -> None:
    moment, kills, longest, directory = random.Random(seed), 0, 4.0, tmp_path
    # Sooner, where a machine is too fast to be killed, or was killed behind the last step, with nothing to resume.
    while not kills or not left_by(directory)["history"]["fisher"]:
        longest, directory = longest / 2, directory / "again"
        directory.mkdir()
        while not (directory / kill_and_resume.DONE).exists():
            kills += start(directory, seconds=moment.uniform(0.15, 1.0) * longest if kills < 6 else None)
    assert_same_measurements(left_by(directory), unbroken)


def test_of_two_runs_that_go_on_from_one_checkpoint_at_once_each_has_its_own_history(
    unbroken: dict[str, Any], tmp_path: Path
) -> None:
    """As of a job that is started again while the old one still runs; both are killed later."""
    assert start(tmp_path, "training 4")
    barrier, both = PROCESSES.Barrier(2), []
    for own in ("a", "b"):
        (tmp_path / own).mkdir()
        arguments = (tmp_path, "training 11", own, barrier)
        both.append(PROCESSES.Process(target=kill_and_resume.fit_until_killed, args=arguments))
        both[-1].start()
    for process in both:
        process.join(120)
        assert process.exitcode == -9
    for own in ("a", "b"):
        process = PROCESSES.Process(target=kill_and_resume.fit_until_killed, args=(tmp_path, None, own))
        process.start()
        process.join(120)
        assert process.exitcode == 0
        assert_same_measurements(left_by(tmp_path / own), unbroken)
    files = list((tmp_path / "probes").glob("fisher*.jsonl"))
    steps = [json.loads(line)["step"] for path in files for line in path.read_text().splitlines()]
    assert len(steps) > len(unbroken["history"]["fisher"])


def test_nothing_measured_is_lost_when_the_process_dies_a_moment_later(tmp_path: Path) -> None:
    process = PROCESSES.Process(target=kill_and_resume.log_and_die, args=(tmp_path, 3))
    process.start()
    process.join(60)
    assert process.exitcode == -9

    (beside,) = tmp_path.rglob("fisher.jsonl")
    lines = [json.loads(line) for line in beside.read_text().splitlines()]
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [float(row["fisher/trace"]) for row in csv.DictReader(file) if row["fisher/trace"]]
    (run,) = read_all(tmp_path, wait_seconds=0)
    logged = run.rows("fisher/trace")
    assert [line["step"] for line in lines] == [row["trainer/global_step"] for row in logged] == [0, 1, 2, 3]
    assert rows == [row["fisher/trace"] for row in logged]
