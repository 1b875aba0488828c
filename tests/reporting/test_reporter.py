from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_probes.reporting import Event, alert, log_event, pictures, record_settings, static, write_summary
from tests.reporting.samples import HISTORY, NAME, PANELS, TRAIL, UNSTABLE

SCALARS = {"demo/trace": 4.0, "demo/flag/unstable": 1.0}


def event(step: int, scalars: dict[str, float] = SCALARS) -> Event:
    return Event(step, NAME, scalars, [UNSTABLE], pictures(PANELS, NAME, HISTORY, TRAIL), {"demo/trace_max": 4.0})


class AnyLogger:
    """A logger of a kind nobody has heard of."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append((metrics, step))

    def save(self) -> None:
        self.saved = len(self.calls)


def tensorboard_events(root: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(root), size_guidance={"images": 0})
    events.Reload()
    return events


def tensorboard_logger(root: Path, **options: Any) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(root, name=None, version="", **options)


def test_without_a_logger_nothing_happens() -> None:
    log_event([], event(1))
    record_settings([], NAME, {})
    alert([], UNSTABLE)
    write_summary([], {"probes/stopped_by": "demo"})


def test_an_unknown_logger_gets_the_scalars_at_the_events_step_and_pays_for_no_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning_probes.reporting.Panel.figure", lambda *_: pytest.fail("drew for nobody"))
    logger = AnyLogger()
    log_event([logger], event(7))
    record_settings([logger], NAME, {"seed": 1})
    alert([logger], UNSTABLE)
    write_summary([logger], {"probes/stopped_by": "demo"})
    assert logger.calls == [(SCALARS, 7)]
    assert logger.saved == 1  # nothing waits to be written


def test_every_logger_gets_its_own_copy() -> None:
    loggers = [AnyLogger(), AnyLogger()]
    log_event(loggers, event(7))
    loggers[0].calls[0][0].clear()
    assert loggers[1].calls == [(SCALARS, 7)]
    assert SCALARS


def test_csv_holds_the_scalars_beside_the_users(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name=None, version="")
    logger.log_metrics({"user/loss": 5.0}, step=0)
    log_event([logger], event(0))
    log_event([logger], event(10, {"demo/trace": 2.0}))
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    traces = [(int(row["step"]), float(row["demo/trace"])) for row in rows if row["demo/trace"]]
    assert traces == [(0, 4.0), (10, 2.0)]
    assert [float(row["user/loss"]) for row in rows if row["user/loss"]] == [5.0]


def test_tensorboard_holds_the_scalars_and_the_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    logger = tensorboard_logger(tmp_path)
    log_event([logger], event(0))
    log_event([logger], event(10, {"demo/trace": 2.0}))
    logger.finalize("success")
    events = tensorboard_events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("demo/trace")] == [(0, 4.0), (10, 2.0)]
    assert events.Tags()["images"] == [f"demo/{panel.key}" for panel in PANELS]
    (first, second) = events.Images("demo/layers")
    assert (first.step, second.step) == (0, 10)
    shown = np.asarray(image.open(io.BytesIO(second.encoded_image_string)))
    assert (shown == static.pixels(event(0).pictures[3].figure())).all()


def test_a_tensorboard_prefix_is_put_before_pictures_too(tmp_path: Path) -> None:
    logger = tensorboard_logger(tmp_path, prefix="fold0")
    log_event([logger], event(0))
    logger.finalize("success")
    tags = tensorboard_events(tmp_path).Tags()
    assert set(tags["scalars"]) == {f"fold0-{key}" for key in SCALARS}
    assert "fold0-demo/layers" in tags["images"]


def test_tensorboard_without_matplotlib_gets_the_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_probes.reporting.reporter.find_spec", lambda name: None)
    logger = tensorboard_logger(tmp_path)
    log_event([logger], event(0))
    logger.finalize("success")
    tags = tensorboard_events(tmp_path).Tags()
    assert set(tags["scalars"]) == set(SCALARS)
    assert tags["images"] == []


def test_an_event_of_pictures_alone_logs_no_empty_scalars() -> None:
    logger = AnyLogger()
    log_event([logger], event(7, {}))
    assert logger.calls == []


def test_tensorboard_on_other_ranks_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    logger = tensorboard_logger(tmp_path)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_event([logger], event(0))
    assert list(tmp_path.iterdir()) == []


def test_a_fast_dev_runs_dummy_logger_is_left_alone() -> None:
    from lightning.pytorch.loggers.logger import DummyLogger

    log_event([DummyLogger()], event(0))


def test_a_logger_that_can_not_write_its_file_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loggers import CSVLogger

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    broken, whole = CSVLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")
    monkeypatch.setattr(broken.experiment, "save", full)
    with pytest.warns(UserWarning, match="CSVLogger could not write the results of probes: .*No space left"):
        log_event([broken, whole], event(0))
    assert (Path(whole.log_dir) / "metrics.csv").exists()
