"""A fit killed while a grid is measured: nothing of it is reported, and the resumed run reports the whole of it."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from tests import kill_and_resume

# Forked from a process that has imported everything, for each would take seconds over that.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([kill_and_resume.__name__])


def start(directory: Path, directions: str, points: int | None = None) -> bool:
    """Fit in a process of its own; whether it was killed."""
    directory.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=kill_and_resume.plane_until_killed, args=(directory, directions, points))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -9), "the fit ended in an error"
    return process.exitcode == -9


@pytest.mark.parametrize("directions", ["random", "trajectory"])
def test_half_a_grid_is_not_reported_and_the_resumed_run_measures_all_of_it(directions: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert not start(whole, directions)
    assert start(broken, directions, points=6)  # of 26, in the second grid
    killed = [json.loads(line) for line in (broken / "probes" / "plane.jsonl").read_text().splitlines()]
    assert [row["step"] for row in killed] == [4]
    assert not (broken / kill_and_resume.DONE).exists()

    assert not start(broken, directions)

    found, expected = (json.loads((each / kill_and_resume.DONE).read_text()) for each in (broken, whole))
    assert [row["step"] for row in found["history"]] == [row["step"] for row in expected["history"]] == [4, 8, 12]
    assert found["surfaces"] == expected["surfaces"]
    assert [len(surface) for surface in found["surfaces"]] == [25] * 3
    steps = [json.loads(line)["step"] for line in (broken / "probes" / "plane.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12]
