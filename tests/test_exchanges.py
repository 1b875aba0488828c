"""User code that exchanges tensors between processes, and data that they shard by themselves, end in no deadlock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_processes import Seen, launch

EXCHANGING = ("contrastive", "centred", "reduced", "contrastive shards", "lopsided", "disagreeing")
SCENARIOS = (*EXCHANGING, "contrastive, no probe", "contrastive, too few samples", "shards", "one shard is empty")


@pytest.fixture(scope="module", params=[2, 3])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    directory: Path = tmp_path_factory.mktemp("exchanges")
    return launch(directory, "ddp_find_unused_parameters_true", request.param, *SCENARIOS, torchrun=True)


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.endswith(("/seconds", "/overhead"))}


@pytest.mark.parametrize("scenario", [*EXCHANGING, "shards", "one shard is empty"])
def test_every_process_measures_to_the_end_with_the_same_numbers(scenario: str, seen: Seen) -> None:
    everyone = seen[scenario]
    assert [each["error"] for each in everyone] == [""] * len(everyone)
    assert all(numbers(each["metrics"]) == numbers(everyone[0]["metrics"]) != {} for each in everyone)
    assert all(steps == [0, 1, 2] for each in everyone for steps in each["measured"].values())


def test_units_that_may_be_exchanged_in_one_process_alone_are_exchanged_in_none(seen: Seen) -> None:
    for each in seen["disagreeing"]:
        assert any("units that may not be exchanged are left as they are: net.0" in said for said in each["said"])


def test_training_that_exchanges_is_as_without_probes(seen: Seen) -> None:
    assert [each["weights"] for each in seen["contrastive"]] == [
        each["weights"] for each in seen["contrastive, no probe"]
    ]


@pytest.mark.parametrize("scenario", ["contrastive", "centred", "reduced"])
def test_where_training_exchanges_each_has_as_many_micro_batches_of_one_size(scenario: str, seen: Seen) -> None:
    world = len(seen[scenario])
    for each in seen[scenario]:
        for sizes in each["sizes"].values():
            assert sizes["train"] == [4] * (40 // (4 * world) * world)
        assert sum("exchanges tensors between processes" in said for said in each["said"]) == len(each["sizes"])


def test_passes_that_only_some_processes_would_make_are_left_out_which_is_said(seen: Seen) -> None:
    for scenario in ("contrastive", "lopsided"):
        for each in seen[scenario]:
            found = [said for said in each["said"] if "there is no check that autograd has all of its second" in said]
            assert len(found) == len({"sharpness", "regime"} & each["measured"].keys()) > 0


def test_where_there_are_too_few_samples_for_that_it_is_refused_before_the_first_step(seen: Seen) -> None:
    everyone = seen["contrastive, too few samples"]
    if len(everyone) == 2:  # enough
        assert [each["error"] for each in everyone] == ["", ""]
        return
    assert all("pass a larger num_samples=" in each["error"] and each["steps"] == 0 for each in everyone)


def test_shards_of_different_length_are_measured_each_in_its_own_process(seen: Seen) -> None:
    for each in seen["shards"]:
        expected = {2: [7, 7, 6, 6, 6], 3: [7, 7, 6, 6, 7]}[len(seen["shards"])]
        assert each["sizes"]["interpolation"]["val"] == expected
    for each in seen["contrastive shards"]:
        expected = {2: [8, 8], 3: [7, 7, 7]}[len(seen["shards"])]
        assert each["sizes"]["interpolation"]["val"] == expected


def test_data_of_which_one_process_has_none_is_left_out_in_all_which_is_said(seen: Seen) -> None:
    for each in seen["one shard is empty"]:
        if len(seen["one shard is empty"]) == 3:
            assert "val" not in each["sizes"]["cka"]
            assert sum("val data is left out" in said for said in each["said"]) == 2
