from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_probes.reporting import Event, Lines, alert, log_event, pictures, record_settings, write_summary
from lightning_probes.reporting.wandb.logger import FLAGS, X_AXIS
from tests.reporting.samples import ALPHAS, HISTORY, NAME, NONFINITE, PANELS, TRAIL, UNSTABLE
from tests.wandb_offline import OfflineRun, payloads, read_all

wandb = pytest.importorskip("wandb")
DETAILS = {"demo/trace_se", "demo/seconds", "demo/flag/unstable"}
SCALARS = {"demo/trace": 4.0, "demo/trace_se": 0.5, "demo/seconds": 0.25, "demo/flag/unstable": 0.0}
LONG = "x" * 80_000  # A record that spans three blocks of the log.
CURVE_TABLE = "Custom Chart Tables/demo/path_table"
EXTRAS = {
    "demo/events",
    "demo/layers_table",
    "demo/to_init_table",
    "demo/plane_table",
    "demo/path_coloured",
    "demo/log_plane_table",
}


RISEN = [(7, "demo", UNSTABLE), (7, "other", NONFINITE), (9, "demo", UNSTABLE)]


def offline_logger(root: Path, **options: Any) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(save_dir=root, mode="offline", **options)


def rows_at(run: OfflineRun, key: str) -> list[tuple[int, Any]]:
    return [(row[X_AXIS], row[key]) for row in run.rows(key)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> OfflineRun:
    """A run in which two probes report while the user logs beside them, later and earlier steps mixed."""
    root = tmp_path_factory.mktemp("story")
    logger = offline_logger(root)
    record_settings([logger], "demo", {"seed": 1, "schedule": [1, 2]})
    record_settings([logger], "other", {"seed": 2, "note": LONG})
    logger.log_metrics({"user/loss": 5.0}, step=0)
    log_event([logger], Event(0, "demo", SCALARS, summary={"demo/trace_max": 4.0}, details=DETAILS))
    logger.experiment.log({"user/raw": 1.0})
    early = pictures(PANELS, NAME, HISTORY[:2], _until(10))
    log_event([logger], Event(7, "demo", SCALARS, [UNSTABLE], early, risen=RISEN[:1]))
    logger.log_metrics({"user/loss": 4.0}, step=3)
    log_event([logger], Event(7, "other", {"other/loss": 1.0}, [NONFINITE], risen=RISEN[:2], details={"other/loss"}))
    logger.experiment.log({"user/raw": 2.0})
    late = pictures(PANELS, NAME, HISTORY, TRAIL)
    log_event([logger], Event(9, "demo", SCALARS, [UNSTABLE], late, {"demo/trace_max": 6.0}, RISEN))
    log_event([logger], Event(11, "demo", {"demo/trace": 3.0}))
    alert([logger], UNSTABLE)
    write_summary([logger], {"probes/stopped_by": "demo/flag/unstable"})
    wandb.finish()
    (run,) = read_all(root)
    return run


def _until(step: int) -> dict[str, Any]:
    return {key: [(at, result) for at, result in trail if at <= step] for key, trail in TRAIL.items()}


def test_an_event_is_one_row_with_every_key_and_the_x_axis(story: OfflineRun) -> None:
    (row,) = [row for row in story.rows("demo/trace") if row[X_AXIS] == 9]
    plotly = {
        f"demo/{key}" for key in ("trace_over_steps", "trace_over_loss", "layers", "to_init", "plane", "log_plane")
    }
    assert set(row) == {*SCALARS, *plotly, CURVE_TABLE, *EXTRAS, FLAGS, X_AXIS}
    assert {key: row[key] for key in SCALARS} == SCALARS
    assert [at for at, _ in rows_at(story, "demo/trace")] == [0, 7, 9, 11]


def test_nothing_is_lost_or_mixed_when_the_user_logs_beside_it(story: OfflineRun) -> None:
    assert rows_at(story, "user/loss") == [(0, 5.0), (3, 4.0)]
    assert [row["user/raw"] for row in story.rows("user/raw")] == [1.0, 2.0]
    assert rows_at(story, "other/loss") == [(7, 1.0)]
    mixed = [row for row in story.history if any("user/" in key for key in row) and any("demo/" in key for key in row)]
    assert mixed == []


def test_each_key_is_defined_by_its_exact_name_with_the_trainers_step_as_its_axis(story: OfflineRun) -> None:
    logged = {key for row in story.history for key in row if key.split("/")[0] in ("demo", "other", "probes")}
    assert {story.definitions[key]["step_metric"] for key in logged} == {X_AXIS}
    assert X_AXIS in story.definitions
    assert story.globs == ["*"], "the only glob is the logger's own"


def test_details_and_data_for_custom_panels_have_no_automatic_panel(story: OfflineRun) -> None:
    hidden = {name for name, definition in story.definitions.items() if definition["hidden"]}
    scalars = {"demo/trace_se", "demo/seconds", "demo/flag/unstable", "demo/trace_max", "other/loss"}
    assert hidden == {*scalars, *EXTRAS, CURVE_TABLE}


def test_running_extremes_are_in_the_summary_and_never_in_the_history(story: OfflineRun) -> None:
    assert story.summary["demo/trace_max"] == 6.0
    assert story.summary["probes/stopped_by"] == "demo/flag/unstable"
    assert story.rows("demo/trace_max") == story.rows("probes/stopped_by") == []
    assert story.summary["demo/trace"] == 3.0


def test_the_table_of_flags_grows_and_keeps_what_other_probes_wrote(story: OfflineRun) -> None:
    tables = [story.table(row[FLAGS]) for row in story.rows(FLAGS)]
    first = {"step": 7, "probe": "demo", "flag": "unstable", "value": 2.5, "threshold": 2.0, "level": "warning"}
    second = {
        "step": 7,
        "probe": "other",
        "flag": "demo/flag/nonfinite",
        "value": None,
        "threshold": None,
        "level": "info",
    }
    rows = [
        first | {"message": "the step is too long"},
        second | {"message": "not finite: demo/trace"},
        first | {"step": 9, "message": "the step is too long"},
    ]
    assert tables == [rows[:1], rows[:2], rows]


def test_curves_are_a_native_line_series_with_a_line_for_every_event_so_far(story: OfflineRun) -> None:
    tables = [story.table(row[CURVE_TABLE]) for row in story.rows(CURVE_TABLE)]
    lines = [list(dict.fromkeys(row["line"] for row in table)) for table in tables]
    assert lines == [["step  0", "step 10"], ["step  0", "step 10", "step 30"]]
    second = [row for row in tables[1] if row["line"] == "step 10"]
    assert [row["step"] for row in second] == [10] * 5
    assert [row["alpha"] for row in second] == ALPHAS.tolist()
    assert [row["loss"] for row in second] == (2.0 - 2 * ALPHAS).tolist()
    assert sorted(lines[1]) == lines[1], "the chart sorts its lines by name"
    chart = story.config["_wandb"]["visualize"]["demo/path"]["panel_config"]
    assert chart["panelDefId"] == "wandb/lineseries/v0"
    assert chart["fieldSettings"] == {"step": "alpha", "lineKey": "line", "lineVal": "loss"}
    assert chart["stringSettings"] == {"title": "Loss along a path", "xname": "alpha. Descriptive"}


def test_curves_are_there_in_colour_too(story: OfflineRun) -> None:
    figure = story.file(story.rows("demo/path_coloured")[-1]["demo/path_coloured"])
    lines = [trace for trace in figure["data"] if trace.get("fill") is None]
    assert [line["name"] for line in lines] == ["step 0", "step 10", "step 30"]
    assert len({line["line"]["color"] for line in lines}) == 3


def test_a_tidy_table_lies_beside_each_picture(story: OfflineRun) -> None:
    """Once the last event is in: all events of lines, the latest of a slider, all of a heatmap over steps."""
    last = {key: story.table(story.rows(key)[-1][key]) for key in EXTRAS if "coloured" not in key}
    events = [{"step": s, "epoch": e, "trace": t, "trace_se": se, "loss": loss} for s, e, t, se, loss in (
        (0, 0, 4.0, 0.5, 2.0), (10, 0, 2.0, 0.25, 1.0), (30, 1, 1.0, 0.125, 1.5),
    )]  # fmt: skip
    assert last["demo/events"] == events
    assert last["demo/layers_table"] == [
        {"step": 30, "row": row, "column": column, "value": 1.0 if row == column else 0.5}
        for row in "ab" for column in "ab"
    ]  # fmt: skip
    assert last["demo/to_init_table"] == [
        {"step": step, "row": row, "value": value}
        for step, values in ((0, (1.0, 1.0)), (10, (0.75, 1.0)), (30, (0.5, 1.0)))
        for row, value in zip("ab", values, strict=True)
    ]
    assert last["demo/plane_table"] == [
        {"step": 30, "x": x, "y": y, "value": 2.0 + 3 * row + x} for row, y in enumerate((-1, 1)) for x in range(3)
    ]


@pytest.mark.parametrize("key", ["trace_over_steps", "trace_over_loss", "layers", "to_init", "plane", "log_plane"])
def test_other_pictures_are_plotly_files_of_plain_numbers(story: OfflineRun, key: str) -> None:
    files = [story.file(row[f"demo/{key}"]) for row in story.rows(f"demo/{key}")]
    assert len(files) == 2
    assert all(file["data"] for file in files)
    assert "bdata" not in json.dumps(files)


def test_settings_of_all_probes_are_recorded_side_by_side(story: OfflineRun) -> None:
    assert story.config["probes"] == {"demo": {"seed": 1, "schedule": [1, 2]}, "other": {"seed": 2, "note": LONG}}


def test_an_alert_carries_the_flag_and_waits_a_second(story: OfflineRun) -> None:
    text = "the step is too long (value 2.5, threshold 2)"
    assert story.alerts == [{"title": "demo/flag/unstable", "text": text, "level": "WARN", "wait_duration": 1000}]


def test_the_reader_of_offline_runs_agrees_with_wandbs_own(story: OfflineRun) -> None:
    (log,) = story.directory.glob("run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    # The command is newer than the oldest wandb supported; the one in constraints.txt has it, so CI never skips.
    if subprocess.run([*command, "--help"], capture_output=True, check=False).returncode:
        pytest.skip("this wandb can't inspect a log")
    done = subprocess.run([*command, str(log)], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == len(list(payloads(log.read_bytes())))
    theirs = [record["history"]["item"] for record in records if record["type"] == "history"]
    keys = (X_AXIS, *SCALARS, "user/loss", "user/raw")
    assert [{k: row[k] for k in keys if k in row} for row in theirs] == [
        {k: row[k] for k in keys if k in row} for row in story.history
    ]
    done = subprocess.run([*command, "--summary", str(log)], capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["config"]["probes"] == story.config["probes"]
    for key in ("demo/trace", "demo/trace_max", "probes/stopped_by", FLAGS):
        assert summary["summary"][key] == story.summary[key]


def test_the_reader_notices_a_broken_log(story: OfflineRun) -> None:
    (log,) = story.directory.glob("run-*.wandb")
    content = bytearray(log.read_bytes())
    content[200] ^= 1
    with pytest.raises(ValueError, match="wrong checksum"):
        list(payloads(bytes(content)))


def test_a_run_that_existed_before_the_logger_gets_the_same_axis(run_dir: Path) -> None:
    run = wandb.init(mode="offline", dir=run_dir)
    with pytest.warns(UserWarning, match="wandb run already in progress"):
        log_event([offline_logger(run_dir)], Event(5, "demo", SCALARS))
    run.finish()
    (written,) = read_all(run_dir)
    assert written.globs == []
    assert set(written.definitions) == {X_AXIS, *SCALARS}
    assert rows_at(written, "demo/trace") == [(5, 4.0)]


def test_a_prefix_is_put_before_rows_definitions_summary_and_pictures(run_dir: Path) -> None:
    logger = offline_logger(run_dir, prefix="fold0")
    drawn = pictures(PANELS, NAME, HISTORY, TRAIL)
    log_event([logger], Event(5, "demo", SCALARS, [UNSTABLE], drawn, {"demo/trace_max": 4.0}, RISEN[:1]))
    wandb.finish()
    (run,) = read_all(run_dir)
    assert {X_AXIS, *(f"fold0-{key}" for key in SCALARS)} <= set(run.definitions)
    assert not set(SCALARS) & set(run.definitions)
    assert rows_at(run, "fold0-demo/trace") == [(5, 4.0)]
    assert run.summary["fold0-demo/trace_max"] == 4.0
    assert len(run.table(run.rows("fold0-probes/flags")[0]["fold0-probes/flags"])) == 1
    assert "fold0-demo/layers" in run.history[0]
    assert "fold0-demo/path" in run.config["_wandb"]["visualize"]


def test_a_picture_or_number_goes_before_the_table_of_its_key_and_is_shown(run_dir: Path) -> None:
    panels = [Lines("events", "Trace", y="trace"), Lines("layers_table", "Trace", y="trace"), *PANELS[2:]]
    scalars = {**SCALARS, "demo/to_init_table": 5.0}
    log_event([offline_logger(run_dir)], Event(5, "demo", scalars, pictures=pictures(panels, NAME, HISTORY, TRAIL)))
    wandb.finish()
    (run,) = read_all(run_dir)
    (row,) = run.rows("demo/trace")
    assert [row[f"demo/{key}"]["_type"] for key in ("events", "layers_table")] == ["plotly-file"] * 2
    assert row["demo/to_init_table"] == 5.0
    assert not any(run.definitions[f"demo/{key}"]["hidden"] for key in ("events", "layers_table", "to_init_table"))


def test_a_second_run_in_the_same_process_starts_afresh(run_dir: Path) -> None:
    for name, value in (("first", 1.0), ("second", 2.0)):
        logger = offline_logger(run_dir / name)
        log_event([logger], Event(3, "demo", {"demo/trace": value}))
        wandb.finish()
    for name, value in (("first", 1.0), ("second", 2.0)):
        (run,) = read_all(run_dir / name)
        assert {X_AXIS, "demo/trace"} <= set(run.definitions)
        assert rows_at(run, "demo/trace") == [(3, value)]


def test_a_run_resumed_in_the_same_process_is_defined_again(run_dir: Path) -> None:
    for step in (1, 2):
        logger = offline_logger(run_dir / str(step), id="resumed")
        log_event([logger], Event(step, "demo", {"demo/trace": 1.0}))
        wandb.finish()
    (second,) = read_all(run_dir / "2")
    assert {X_AXIS, "demo/trace"} <= set(second.definitions)


@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_a_disabled_run_takes_everything_and_draws_nothing(
    namespace: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = pytest.importorskip(f"{namespace}.loggers")
    logger = type("UsersOwnLogger", (loggers.WandbLogger,), {})(save_dir=run_dir, mode="disabled")
    monkeypatch.setattr("lightning_probes.reporting.Panel.figure", lambda *_: pytest.fail("drew for a disabled run"))
    log_event(
        [logger], Event(1, "demo", SCALARS, [UNSTABLE], pictures(PANELS, NAME, HISTORY, TRAIL), {"demo/max": 1.0})
    )
    record_settings([logger], "demo", {"seed": 1})
    alert([logger], UNSTABLE)
    write_summary([logger], {"probes/stopped_by": "demo"})
    # Only the W&B branch writes a summary, so both namespaces' loggers were recognised.
    assert (logger.experiment.summary["demo/max"], logger.experiment.config["probes"]) == (1.0, {"demo": {"seed": 1}})
    assert list(run_dir.rglob("run-*.wandb")) == []


def test_other_ranks_report_nothing_and_do_not_fail(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    logger = offline_logger(run_dir)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_event(
        [logger], Event(1, "demo", SCALARS, [UNSTABLE], pictures(PANELS, NAME, HISTORY, TRAIL), {"demo/max": 1.0})
    )
    record_settings([logger], "demo", {"seed": 1})
    alert([logger], UNSTABLE)
    write_summary([logger], {"probes/stopped_by": "demo"})
    assert list(run_dir.iterdir()) == []
