"""A study that was interrupted, and one in several processes, has the table of one that was not."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path

import pytest

from lightning_probes.studies import InstabilityResult
from tests.studies import trained
from tests.studies.trained import SPAWN_STEPS, STEPS, assert_equal, study, weights

PROCESSES = multiprocessing.get_context("spawn")


@pytest.mark.slow
@pytest.mark.parametrize("kill", [(1, 7), (2, 3), (4, 9), (7, STEPS)])
def test_killed_and_continued_it_has_the_same_table_and_repeats_no_finished_training(
    kill: tuple[int, int], whole: tuple[Path, InstabilityResult], tmp_path: Path
) -> None:
    for each in (kill, None):
        process = PROCESSES.Process(target=trained.study_until_killed, args=(tmp_path, each))
        process.start()
        process.join(120)
        assert process.exitcode == (-9 if each else 0)
    assert study(tmp_path / "study") == whole[1]
    started = (tmp_path / "started").read_text().splitlines()
    assert len(started) == 8  # a parent and six children, and one again
    assert len(set(started)) == 7
    assert started.count(started[kill[0] - 1]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 12])  # of three trials, a parent, six children and three measurements
def test_killed_in_a_trial_or_a_measurement_it_has_the_same_table_and_trains_each_network_once(
    call: int, whole: tuple[Path, InstabilityResult], tmp_path: Path
) -> None:
    for each in (call, None):
        process = PROCESSES.Process(target=trained.study_until_killed_between, args=(tmp_path, each))
        process.start()
        process.join(120)
        assert process.exitcode == (-9 if each else 0)
    assert study(tmp_path / "study") == whole[1]
    started = (tmp_path / "started").read_text().splitlines()
    assert len(started) == len(set(started)) == 7


@pytest.mark.slow
def test_two_processes_give_the_same_table(whole: tuple[Path, InstabilityResult], tmp_path: Path) -> None:
    assert study(tmp_path / "study", processes=2) == whole[1]
    for step in SPAWN_STEPS:
        assert_equal(
            weights(tmp_path / "study" / f"step-{step}-seed-2.ckpt"), weights(whole[0] / f"step-{step}-seed-2.ckpt")
        )


@pytest.mark.slow
def test_killed_process_of_several_is_told_and_the_others_are_kept(
    whole: tuple[Path, InstabilityResult], tmp_path: Path
) -> None:
    dying = partial(trained.make_dying_trainer, tmp_path / "died")
    with pytest.raises(RuntimeError, match="a process of the study was killed"):
        study(tmp_path / "study", make_trainer=dying, processes=2)
    assert study(tmp_path / "study") == whole[1]


def test_what_a_killed_process_had_begun_to_save_does_not_stay(tmp_path: Path) -> None:
    study(tmp_path / "study", spawn_steps=(4,))
    before = sorted(path.name for path in (tmp_path / "study").iterdir())
    (tmp_path / "study" / "step-4.part99").write_text("half")
    (tmp_path / "study" / ".parent.json.99").write_text("half")
    study(tmp_path / "study", spawn_steps=(4,))
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == before


def test_finished_study_trains_nothing_again(whole: tuple[Path, InstabilityResult], tmp_path: Path) -> None:
    counting = partial(trained.make_counting_trainer, tmp_path / "started")
    first = study(tmp_path / "study", make_trainer=counting, spawn_steps=(4,))
    before = (tmp_path / "started").read_text()
    assert study(tmp_path / "study", make_trainer=counting, spawn_steps=(4,)) == first
    assert (tmp_path / "started").read_text() == before
