"""From runs to a portfolio and its files: what counts, what is left out, and what is refused in one sentence."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes.cli import main
from lightning_probes.studies import portfolio
from lightning_probes.studies.run_records import records

LOSSES = {"digits": (0.0, 1.0, 0.4), "letters": (1.0, 0.0, 0.4)}
RATES = (0.1, 0.2, 0.3)


def rows(losses: Any = LOSSES, metric: str = "val/loss") -> list[dict[str, Any]]:
    return [
        {"dataset": task, "lr": lr, metric: loss}
        for task, each in losses.items()
        for lr, loss in zip(RATES, each, strict=False)
    ]


def chosen(runs: Any, **arguments: Any) -> Any:
    return portfolio(runs, **{"task": "dataset", "metric": "val/loss", "configs": ["lr"], **arguments})


def rates(found: Any) -> list[float]:
    return [config["lr"] for config in found.configs]


# -- where runs come from ----------------------------------------------------------------------------------------------


class Frame:
    """What of pandas is used: its columns and its records."""

    def __init__(self, content: list[dict[str, Any]]) -> None:
        self.content, self.columns = content, list(content[0])

    def to_dict(self, kind: str) -> list[dict[str, Any]]:
        assert kind == "records"
        return self.content


def saved(path: Path, content: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in content for key in row)))
        writer.writeheader()
        writer.writerows(content)
    return path


def test_dicts_a_frame_and_a_csv_file_give_the_same_portfolio(tmp_path: Path) -> None:
    path = saved(tmp_path / "runs.csv", rows())
    for runs in (rows(), iter(rows()), Frame(rows()), path, str(path)):
        found = chosen(runs)
        assert rates(found) == [0.3, 0.1, 0.2]
        assert found.reached == (0.4, 0.2, 0.0)
        assert found.by_average == (2, 0, 1)
        assert found.wins == [[], ["digits"], ["letters"]]


def test_cell_of_a_csv_file_is_a_number_where_it_reads_as_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "runs.csv", [{"a": "1e-3", "b": "true", "c": "none", "d": "", "e": "[1, 2]", "f": "7"}])
    [record] = records(path)
    assert record.config == {"a": 0.001, "b": True, "c": "none", "d": "", "e": [1, 2], "f": 7}


def test_key_of_a_nested_config_has_dots() -> None:
    runs = [
        {"data": {"name": task}, "model": {"lr": lr}, "val": {"loss": loss}}
        for task, each in LOSSES.items()
        for lr, loss in zip(RATES, each, strict=True)
    ]
    found = portfolio(runs, task="data.name", metric="val.loss", configs=["model.lr"])
    assert found.configs == [{"model.lr": 0.3}, {"model.lr": 0.1}, {"model.lr": 0.2}]


def test_whole_number_and_its_float_are_one_configuration_but_not_true() -> None:
    runs = [
        {"dataset": "a", "lr": 1, "val/loss": 2.0},
        {"dataset": "b", "lr": 1.0, "val/loss": 2.0},
        {"dataset": "a", "lr": True, "val/loss": 1.0},
        {"dataset": "b", "lr": True, "val/loss": 1.0},
    ]
    assert chosen(runs).table.losses.tolist() == [[2, 1], [2, 1]]


# -- what counts -------------------------------------------------------------------------------------------------------


def test_repeats_are_averaged_before_losses_are_scaled() -> None:
    runs = [*rows(), {"dataset": "digits", "lr": 0.1, "val/loss": 0.5}]
    assert chosen(runs).table.losses.tolist() == [[0.25, 1.0, 0.4], [1.0, 0.0, 0.4]]


def test_failed_run_counts_only_where_no_other_has_finished() -> None:
    runs = rows()
    runs[0]["state"] = "crashed"
    with pytest.warns(UserWarning, match="1 of 6 pairs of a task and a configuration"):
        table = chosen(runs).table
    assert math.isnan(table.losses[0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen([*runs, {"dataset": "digits", "lr": 0.1, "val/loss": 0.2}]).table.losses[0, 0] == 0.2


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf, "NaN", "Infinity"])
def test_run_that_diverged_counts_as_the_worst_of_its_task_beside_its_repeats(diverged: Any) -> None:
    runs = [*rows(), {"dataset": "digits", "lr": 0.1, "val/loss": diverged}]
    assert chosen(runs).table.losses[0].tolist() == [0.5, 1.0, 0.4]


def test_runs_still_going_are_left_out_and_named() -> None:
    runs = [*rows(), {"dataset": "digits", "lr": 9.0, "val/loss": -5.0, "state": "running", "name": "later"}]
    with pytest.warns(UserWarning, match=r"1 run \(later\) still going on and left out"):
        found = chosen(runs)
    assert rates(found) == [0.3, 0.1, 0.2]


def test_runs_older_than_a_key_are_left_out_and_named() -> None:
    runs = [*rows(), {"dataset": "digits", "val/loss": -5.0, "name": "old"}]
    with pytest.warns(UserWarning, match=r"1 run \(old\) without the config key 'lr' and left out"):
        found = chosen(runs)
    assert rates(found) == [0.3, 0.1, 0.2]


def test_runs_that_hyperband_stopped_are_left_out_by_how_far_they_went() -> None:
    runs = [{**row, "epoch": 10} for row in rows()]
    runs.append({"dataset": "digits", "lr": 9.0, "val/loss": -5.0, "epoch": 2})
    with pytest.warns(UserWarning, match="stopped before the largest 'epoch' of the task"):
        assert rates(chosen(runs, budget="epoch")) == [0.3, 0.1, 0.2]
    assert rates(chosen(rows(), k=1)) == [0.3]


def test_higher_is_better_where_that_is_said() -> None:
    growing = {task: tuple(1 - loss for loss in each) for task, each in LOSSES.items()}
    found = chosen(rows(growing, "val/acc"), metric="val/acc", minimize=False)
    assert rates(found) == [0.3, 0.1, 0.2]
    assert found.reached == pytest.approx((0.4, 0.2, 0.0))


def test_one_task_gives_its_best_configuration_and_no_word_on_others() -> None:
    with pytest.warns(UserWarning, match="all runs are of one task"):
        found = chosen(rows({"digits": (0.5, 0.2, 0.9)}))
    assert rates(found) == [0.2]
    assert found.held_out == ()


def test_task_that_is_left_out_does_not_choose() -> None:
    """Three tasks want 0.1 and one wants 0.2: left out, that one gets its worst, whatever its own losses say."""
    losses = {"a": (0, 1), "b": (0, 1), "c": (0, 1), "d": (1, 0)}
    first, _ = chosen(rows(losses), k=2).held_out
    assert first == (1, 0.25, 0.5, 0.25, 3)


def test_test_metric_judges_what_the_metric_chooses() -> None:
    runs = [{**row, "test/loss": 1 - row["val/loss"]} for row in rows({"a": (0, 1), "b": (0, 1)})]
    assert chosen(runs, k=2).held_out[1].portfolio == 0.0
    assert chosen(runs, k=2, test_metric="test/loss").held_out[1].portfolio == 1.0


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(-9, 9)), min_size=3, max_size=3), min_size=1, max_size=4))
def test_whatever_the_table_the_order_is_sound(losses: list[list[int | None]]) -> None:
    runs = [{"dataset": "all", "lr": lr, "val/loss": lr} for lr in RATES]
    runs += [
        {"dataset": str(task), "lr": lr, "val/loss": loss}
        for task, each in enumerate(losses)
        for lr, loss in zip(RATES, each, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = chosen(runs)
    assert len(set(found.order)) == len(found.order) >= 1
    assert all(after < before for before, after in zip(found.reached, found.reached[1:], strict=False))
    assert found.reached[0] == found.reached_by_average[0]
    assert sum(map(len, found.wins)) == len(found.table.tasks)
    assert all(0 <= each.portfolio <= 1 and 0 <= each.random <= 1 for each in found.held_out)


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no runs": ([], {}, "holds no runs"),
    "one run": (rows()[:1], {}, "holds 1 finished runs of one configuration"),
    "none finished": ([{**row, "state": "failed"} for row in rows()], {}, "0 still going on, 6 failed"),
    "all going": ([{**row, "state": "running"} for row in rows()], {}, "6 still going on, 0 failed"),
    "a key that no run has": (rows(), {"configs": ["lrs"]}, "has the config key 'lrs': pass .*such as 'lr'"),
    "a task that no run has": (rows(), {"task": "data"}, "has the config key 'data'.*'dataset'"),
    "a metric that no run has": (rows(), {"metric": "val/los"}, "has the metric 'val/los'.*'val/loss'"),
    "no run with all keys": (
        [{"dataset": "a", "lr": 1, "val/loss": 1}, {"lr": 1, "wd": 2, "val/loss": 1}], {"configs": ["lr", "wd"]},
        "has all of the config keys dataset, lr, wd",
    ),
    "nothing but NaN": (rows({"a": (math.nan, math.nan)}), {}, "no finished run has a finite value"),
    "a metric that grows": (rows(metric="val/acc"), {"metric": "val/acc"}, r"grows as .* pass minimize=False"),
    "metrics of two directions": (
        [{**row, "test_accuracy": 1.0} for row in rows()], {"test_metric": "test_accuracy"}, "different directions",
    ),
    "an artifact": ("just-a-name", {}, "runs must be a W&B project"),
    "a number": (3, {}, "runs must be a W&B project"),
    "a file that is not there": ("none.csv", {}, "can't be read as a CSV file"),
    "text for keys": (rows(), {"configs": "lr"}, "configs must be a list of at least one config key"),
    "k of none": (rows(), {"k": 0}, "k must be a whole number of at least 1"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", BAD)
def test_refused_in_one_sentence(what: str) -> None:
    runs, arguments, words = BAD[what]
    with pytest.raises(ValueError, match=words) as caught:
        chosen(runs, **arguments)
    assert "\n" not in str(caught.value)


def test_direction_against_the_name_is_said_and_obeyed() -> None:
    with pytest.warns(UserWarning, match="'val/loss' is maximized, but falls"):
        assert rates(chosen(rows({"a": (0, 1), "b": (0, 1)}), minimize=False)) == [0.2]
    with pytest.warns(UserWarning, match="'val/acc' is minimized, but grows"):
        chosen(rows(metric="val/acc"), metric="val/acc", minimize=True)


@pytest.mark.parametrize("name", ["val/accumulated_loss", "map_loss", "val/precision_error", "val/score_gap"])
def test_name_that_only_looks_like_another_direction_is_no_error(name: str) -> None:
    assert rates(chosen(rows(metric=name), metric=name)) == [0.3, 0.1, 0.2]


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_hold_the_configurations_and_the_sweep_their_paths(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    found = chosen(rows(), configs={"lr": "model.lr"})
    written = found.write("portfolio", "sweep.yaml", base="base.yaml", halving=32, project="mine")
    assert [str(path) for path in written] == [*(f"portfolio/{k}.yaml" for k in range(3)), "sweep.yaml"]
    assert [yaml.safe_load(path.read_text()) for path in written[:3]] == [
        {"model": {"lr": lr}} for lr in (0.3, 0.1, 0.2)
    ]
    assert yaml.safe_load(written[3].read_text()) == {
        "project": "mine",
        "program": "train.py",
        "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "max_iter": 32, "s": 2, "eta": 4},
        "parameters": {"config": {"values": ["portfolio/0.yaml", "portfolio/1.yaml", "portfolio/2.yaml"]}},
        "command": ["${env}", "${interpreter}", "${program}", "fit", "--config", "base.yaml", "${args}"],
    }


def test_nothing_is_overwritten_unless_forced(tmp_path: Path) -> None:
    found = chosen(rows())
    mine = tmp_path / "out" / "2.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"2\.yaml would be overwritten.*--force"):
        found.write(tmp_path / "out", tmp_path / "sweep.yaml")
    assert [path.name for path in sorted(tmp_path.rglob("*.yaml"))] == ["2.yaml"]
    assert mine.read_text() == "mine"
    found.write(tmp_path / "out", force=True)
    assert yaml.safe_load(mine.read_text()) == {"lr": 0.2}


def test_name_that_is_part_of_another_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    runs = [{**row, "model": 1} for row in rows()]
    found = chosen(runs, configs={"model": "model", "lr": "model.lr"})
    with pytest.raises(ValueError, match=r"name 'model\.lr' and a part of it"):
        found.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_small_a_budget_for_three_rungs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="halving must be a whole number of at least 16"):
        chosen(rows()).write(tmp_path, halving=8)


# -- the command -------------------------------------------------------------------------------------------------------


def test_command_prints_both_orders_and_writes_the_files(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    saved(Path("runs.csv"), [*rows(), {"dataset": "digits", "lr": 9.0, "val/loss": 0, "state": "running"}])
    command = ["portfolio", "--csv", "runs.csv", "--task", "dataset", "--keys", "lr=model.lr", "--size", "2"]
    main([*command, "--out", "portfolio", "--sweep", "sweep.yaml"])
    out, error = capsys.readouterr()
    assert error.startswith("note: 1 run (row 6) still going on")
    assert "  0  0.400  lr=0.3  best on 1: letters" in out
    assert "on average: the lowest mean loss first\n  0  0.400  lr=0.3" in out
    assert "  k  portfolio  random search  on average" in out
    assert out.splitlines()[-3:] == ["portfolio/0.yaml", "portfolio/1.yaml", "sweep.yaml"]
    with pytest.raises(SystemExit):
        main([*command, "--out", "portfolio"])
    assert "would be overwritten" in capsys.readouterr().err
    main([*command, "--out", "portfolio", "--force"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--entity", "e"], "pass both --entity and --project, or --csv"),
        ([], "pass both --entity and --project, or --csv"),
        (["--csv", "a.csv", "--entity", "e", "--project", "p"], "pass both --entity and --project, or --csv"),
        (["--csv", "a.csv", "--sweep", "s.yaml"], "pass --out"),
        (["--csv", "a.csv"], "can't be read as a CSV file"),
        (["--csv", "a.csv", "--minimize", "--maximize"], "not allowed with argument"),
        (["--entity", "e", "--project", "p"], "can't be read from W&B"),
    ],
)
def test_command_refuses_in_one_sentence(arguments: list[str], words: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["portfolio", "--task", "dataset", "--keys", "lr", *arguments])
    assert words in capsys.readouterr().err
