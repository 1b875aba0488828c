"""Two processes share the probe data and end with the same numbers as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import fit_in_processes

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process wrote, and what each of two did."""
    directories = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")]
    command = [sys.executable, "-m", "tests.fit_in_processes"]
    fit_in_processes.main(directories[0], 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [*command, str(directories[1]), "2"], cwd=ROOT, env=environment, check=True, timeout=300, capture_output=True
    )
    one, *rest = [
        json.loads(path.read_text()) for directory in directories for path in sorted(directory.glob("rank-*.json"))
    ]
    return one, rest


def test_every_process_has_the_same_scalars_as_a_single_one(runs: Any) -> None:
    one, both = runs

    assert [each["world"] for each in both] == [2, 2]
    timed = {key for key in one["metrics"] if key.endswith(("/seconds", "/overhead"))}
    expected = {key: value for key, value in one["metrics"].items() if key not in timed}
    for key in ("fisher/trace", "sharpness/lambda_max", "sharpness/trace", "cka/null_p95", "interpolation/bn_gap"):
        assert key in expected
    for each in both:
        found = {key: value for key, value in each["metrics"].items() if key not in timed}
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_every_process_has_the_same_curves_and_heatmaps_as_a_single_one(runs: Any) -> None:
    one, both = runs

    assert {"interpolation/loss", "interpolation/val/accuracy", "cka/layers", "cka/to_init"} <= set(one["arrays"])
    for each in both:
        assert each["arrays"].keys() == one["arrays"].keys()
        for key, values in one["arrays"].items():
            np.testing.assert_allclose(each["arrays"][key], values, rtol=1e-5, atol=1e-6, err_msg=key)


def test_processes_keep_the_same_weights(runs: Any) -> None:
    _, (first, second) = runs
    assert first["weights"] == second["weights"]
