"""Several processes share the probe data and end with the same numbers as one, or in the same error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import fit_in_processes

ROOT = Path(__file__).parent.parent
FAULTS = (
    "fails",
    "first fails",
    "fails, warns",
    "interrupted",
    "out of memory",
    "synchronised",
    "breaks off",
    "goes on",
    "reads",
    "reads in all but one",
    "its own checkpoints",
    "monitored",
    "monitored, fails, warns",
    "scaled by one",
    "nothing happens",
)
Seen = dict[str, list[dict[str, Any]]]


def launch(directory: Path, strategy: str, processes: int, *scenarios: str, torchrun: bool = False) -> Seen:
    """What every process wrote of each scenario."""
    arguments = (str(directory), strategy, str(processes), *scenarios)
    started("tests.fit_in_processes", processes, *arguments, torchrun=torchrun)
    return read(directory)


def started(module: str, processes: int, *arguments: str, torchrun: bool = False) -> None:
    """Run a module of the tests, which starts its processes itself unless torchrun does, and wait for its end."""
    prefix = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
    prefix += ["--rdzv-endpoint", "localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, *(prefix if torchrun else ()), "-m", module, *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=200)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # those that wait for each other, too
    assert process.returncode == 0, said[-3000:]


def read(directory: Path) -> Seen:
    seen: Seen = {}
    for path in sorted(directory.glob("*.json")):
        seen.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text()))
    return seen


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    directory = tmp_path_factory.mktemp("one")
    for scenario in (*fit_in_processes.MEASURING, "reads", "nothing happens"):
        fit_in_processes.run(directory, scenario)
    return read(directory)


@pytest.fixture(scope="module")
def three_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("three")


@pytest.fixture(scope="module")
def three(three_directory: Path) -> Seen:
    """Fits one after the other in the same three processes: whatever one leaves behind, the next runs into."""
    return launch(
        three_directory, "ddp_find_unused_parameters_true", 3, *FAULTS, *fit_in_processes.MEASURING, torchrun=True
    )


@pytest.fixture(scope="module", params=["ddp", "ddp_spawn"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    penalised = ("penalised", "penalised by hand", "not penalised")
    return launch(tmp_path_factory.mktemp(request.param), request.param, 2, "even", "planes and paths", *penalised)


def assert_same_numbers(everyone: list[dict[str, Any]], one: dict[str, Any]) -> None:
    timed = {key for key in one["metrics"] if key.endswith(("/seconds", "/overhead"))}
    expected = {key: value for key, value in one["metrics"].items() if key not in timed}
    assert expected
    assert one["arrays"]
    for each in everyone:
        # Some are differences of losses of about 2, whose last float32 digit is 2e-7.
        assert {k: v for k, v in each["metrics"].items() if k not in timed} == pytest.approx(
            expected, rel=1e-5, abs=1e-6
        )
        assert each["arrays"].keys() == one["arrays"].keys()
        for key, values in one["arrays"].items():
            np.testing.assert_allclose(each["arrays"][key], values, rtol=1e-5, atol=1e-6, err_msg=key)


def test_one_process_measures_all_that_is_compared(alone: Seen) -> None:
    keys = {
        "fisher/trace", "sharpness/lambda_max", "sharpness/trace", "cka/null_p95", "interpolation/bn_gap",
        "connectivity/repaired/barrier", "connectivity/init_to_other/max_rise", "plane/kink_gap", "dropout/rise",
        "regime/lambda_max", "linear/null_p95", "linear/best", "gradient_flow/decades", "head2toe/gap",
    }  # fmt: skip
    arrays = {
        "interpolation/loss", "cka/layers", "cka/to_init", "connectivity/aligned/loss", "plane/loss", "linear/accuracy",
        "gradient_flow/norm", "head2toe/relevance",
    }  # fmt: skip
    for scenario in fit_in_processes.AS_ALONE:
        assert alone[scenario][0]["metrics"].keys() >= keys
        assert alone[scenario][0]["arrays"].keys() >= arrays
    found = alone["planes and paths"][0]
    assert found["metrics"].keys() >= {"trajectory/explained_variance", "string/path/max_loss", "bezier/path/max_loss"}
    assert found["arrays"].keys() >= {"trajectory/loss", "triangle/loss", "string/path/loss", "bezier/path/loss"}
    found = alone["blocks"][0]
    assert found["metrics"].keys() >= {"residual/path_length", "residual/turn", "attention/mean", "gradient_flow/slope"}
    assert found["arrays"].keys() >= {"residual/ratio", "attention/distance", "gradient_flow/norm"}


@pytest.mark.parametrize("scenario", ["even", "planes and paths"])
def test_two_processes_have_the_numbers_of_one(scenario: str, two: Seen, alone: Seen) -> None:
    assert len(two[scenario]) == 2
    assert_same_numbers(two[scenario], alone[scenario][0])
    first, second = two[scenario]
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("scenario", ["planes and paths", "blocks"])
def test_three_processes_have_the_planes_paths_and_blocks_of_one(scenario: str, three: Seen, alone: Seen) -> None:
    assert_same_numbers(three[scenario], alone[scenario][0])


def test_checkpoints_that_the_first_process_has_saved_give_every_process_the_same_plane(three: Seen) -> None:
    first, *others = three["its own checkpoints"]
    assert first["error"] == ""
    assert first["measured"]["plane"] == [3]
    assert first["metrics"]["plane/explained_variance"] == pytest.approx(1)  # of two points
    for each in others:
        assert each["arrays"] == first["arrays"]
        assert each["measured"] == first["measured"]


@pytest.mark.parametrize(
    ("scenario", "shares"), [("even", [1, 1, 1]), ("uneven", [1, 1, 1]), ("one without samples", [1, 1, 0])]
)
def test_three_processes_have_the_numbers_of_one(scenario: str, shares: list[int], three: Seen, alone: Seen) -> None:
    assert [each["shares"]["fisher"] for each in three[scenario]] == shares
    assert_same_numbers(three[scenario], alone[scenario][0])


def test_the_first_process_alone_reports_and_keeps_files(three: Seen, three_directory: Path) -> None:
    assert [each["told"] for each in three["synchronised"]] == [2, 0, 0]
    files = sorted(path.name for path in (three_directory / "counts" / "counts" / "probes").iterdir())
    assert [name for name in files if name.startswith("sync")] == ["sync.jsonl"]


def test_several_processes_resume_what_the_first_has_written(three: Seen, three_directory: Path) -> None:
    assert [each["measured"]["fisher"] for each in three["goes on"]] == [[0.0, 1.0]] * 3
    assert not any("earlier measurements" in said for each in three["goes on"] for said in each["said"])
    files = (three_directory / "counts" / "counts" / "probes").glob("fisher*.jsonl")
    steps = [[json.loads(line)["step"] for line in path.read_text().splitlines()] for path in files]
    once = [*fit_in_processes.AS_ALONE, "reads", "reads in all but one"]
    assert sorted(steps) == [[0]] * len(once) + [[0, 1]] * 2  # before the break, and after


def test_processes_read_the_targets_alike(three: Seen, alone: Seen) -> None:
    found = [[each["metrics"]["fisher/loss"] for each in three[name]] for name in ("reads", "reads in all but one")]
    read, usual = alone["reads"][0]["metrics"]["fisher/loss"], found[1][0]
    assert found == [[pytest.approx(read, rel=1e-5)] * 3, [usual] * 3]
    assert usual != pytest.approx(read, rel=1e-3)
    assert any("label 2 is ignored" in line for line in three["reads"][0]["said"])


def test_synchronised_batch_norm_is_measured_as_batch_norm(three: Seen, alone: Seen) -> None:
    for each in three["synchronised"]:
        found = each["metrics"]
        assert found["sync/synchronised"] == pytest.approx(found["sync/plain"], rel=1e-6)
        assert abs(found["sync/plain"] - found["sync/plain_old"]) > 1e-3


@pytest.mark.parametrize(("scenario", "failing"), [("fails", 1), ("first fails", 0)])
def test_error_in_one_process_is_raised_in_all_and_says_where_it_was(scenario: str, failing: int, three: Seen) -> None:
    errors = [each["error"] for each in three[scenario]]
    told = f"PeerError: process {failing} failed: RuntimeError: out of luck"
    assert errors == ["RuntimeError: out of luck" if rank == failing else told for rank in range(3)]
    assert {each["steps"] for each in three[scenario]} == {1}


def test_error_that_only_warns_ends_the_measurement_in_all_processes_and_training_in_none(three: Seen) -> None:
    assert [each["error"] for each in three["fails, warns"]] == [""] * 3
    assert [each["weights"] for each in three["fails, warns"]] == [each["weights"] for each in three["nothing happens"]]
    assert all(any("out of luck" in said for said in each["said"]) for each in three["fails, warns"])
    assert all("fails/loss" in each["metrics"] for each in three["fails, warns"])  # at the steps before and after


def test_interruption_of_one_process_interrupts_all_whatever_on_error_says(three: Seen) -> None:
    kinds = {each["error"].partition(":")[0] for each in three["interrupted"]}
    assert kinds == {"KeyboardInterrupt"}


def test_processes_halve_their_micro_batches_together(three: Seen) -> None:
    found, expected = three["out of memory"], three["nothing happens"]
    assert [each["error"] for each in found] == [""] * 3
    assert all(any("micro-batches of 4 samples" in said for said in each["said"]) for each in found)
    for each, other in zip(found, expected, strict=True):
        assert each["metrics"]["fails/loss"] == pytest.approx(other["metrics"]["fails/loss"], rel=1e-5)


@pytest.mark.parametrize("scenario", ["monitored", "monitored, fails, warns", "scaled by one"])
def test_training_on_several_processes_is_the_same_with_a_monitor_and_an_intervention(
    scenario: str, three: Seen
) -> None:
    assert [each["error"] for each in three[scenario]] == [""] * 3
    assert [each["weights"] for each in three[scenario]] == [each["weights"] for each in three["nothing happens"]]


def test_two_processes_train_with_a_penalty_as_with_the_same_term_in_training_step(two: Seen) -> None:
    found, by_hand, plain = (two[scenario] for scenario in ("penalised", "penalised by hand", "not penalised"))
    assert [each["error"] for each in found] == [""] * 2
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0]["weights"] == pytest.approx(by_hand[0]["weights"], rel=0, abs=1e-5)
    assert found[0]["weights"] != pytest.approx(plain[0]["weights"], rel=0, abs=1e-3)
    values = [each["metrics"]["fisher_penalty/value"] for each in found]
    assert values[0] == values[1] > 0


def test_a_monitor_reads_the_same_in_every_process(three: Seen) -> None:
    first, *others = [
        {
            key: value
            for key, value in each["metrics"].items()
            if key.startswith(("gradients/", "norms/")) and not key.endswith("/seconds")
        }
        for each in three["monitored"]
    ]
    assert first["gradients/norm"] > 0
    assert first["norms/global_norm"] == pytest.approx(first["gradients/norm"], rel=1e-6)
    assert others == [first] * 2
    assert [each["measured"]["gradients"] for each in three["monitored"]] == [[0, 1]] * 3


def test_a_monitor_that_fails_in_one_process_is_left_out_in_all(three: Seen) -> None:
    found = three["monitored, fails, warns"]
    assert all(any("out of luck" in said for said in each["said"]) for each in found)
    assert [each["measured"]["spoils"] for each in found] == [[0]] * 3
