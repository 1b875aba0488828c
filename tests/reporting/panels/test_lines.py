"""Lines: a scalar over steps or over another one, its band, its bars, its reference, its table."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_probes.reporting import Lines, Picture
from tests.reporting.samples import HISTORY, NAME, picture

RISING = [{"step": s, "epoch": 0, "demo/trace": float(s), "demo/trace_se": 1.0} for s in (1, 2, 3, 4, 5)]


def lines(history: list[dict[str, float]], **options: Any) -> Any:
    return Picture(Lines("lines", "Lines", y="trace", **options), NAME, history, {}).figure()


def test_a_line_shows_the_history_and_its_band_two_standard_errors() -> None:
    band, line = picture("trace_over_steps").figure().data
    assert (line.x, line.y) == ((0.0, 10.0, 30.0), (4.0, 2.0, 1.0))
    assert band.fill == "toself"
    assert list(zip(band.x, band.y, strict=True)) == [(0, 5), (10, 2.5), (30, 1.25), (30, 0.75), (10, 1.5), (0, 3)]


def test_a_missing_value_is_a_gap_in_line_and_band() -> None:
    history = [dict(entry) for entry in RISING]
    del history[2]["demo/trace"], history[2]["demo/trace_se"]
    band, line = lines(history).data
    assert line.y == (1.0, 2.0, None, 4.0, 5.0)
    assert band.y == (3, 4, 0, -1, None, 6, 7, 3, 2)


def test_a_scalar_without_standard_error_has_no_band() -> None:
    assert len(lines([{"step": 0, "epoch": 0, "demo/trace": 1.0}]).data) == 1


def test_against_another_scalar_errors_are_bars_and_the_hover_tells_the_step() -> None:
    (line,) = picture("trace_over_loss").figure().data
    assert (line.x, line.error_y.array) == ((2.0, 1.0, 1.5), (1.0, 0.5, 0.25))
    assert line.text == ("step 0", "step 10", "step 30")


def test_a_log_axis_of_steps_shows_step_zero_at_one_and_says_so() -> None:
    figure = lines(HISTORY, log_x=True)
    assert figure.data[-1].x == (1.0, 11.0, 31.0)
    assert (figure.layout.xaxis.type, figure.layout.xaxis.title.text) == ("log", "step + 1")


def test_a_band_that_reaches_zero_stays_on_a_log_axis() -> None:
    band, _ = lines(RISING, log_y=True).data
    assert min(band.y) == pytest.approx(0.1)


@pytest.mark.parametrize("log_y", [False, True])
def test_a_reference_is_a_line_across_with_its_label_at_the_same_height(log_y: bool) -> None:
    figure = lines(RISING, reference=(2.0, "edge"), log_y=log_y)
    (shape,), (label,) = figure.layout.shapes, figure.layout.annotations
    assert (shape.y0, shape.y1, shape.xref) == (2.0, 2.0, "paper")
    # Plotly wants the exponent for an annotation on a log axis, the value for a shape.
    assert label.text == "edge"
    assert label.y == pytest.approx(math.log10(2.0) if log_y else 2.0)


def test_a_caption_stands_beside_a_reference_label() -> None:
    assert [note.text for note in picture("trace_over_steps").figure().layout.annotations] == [
        "With its band.",
        "threshold",
    ]


@pytest.mark.parametrize("name", ["demo", "fold/demo"])
def test_events_leave_out_seconds_and_what_has_another_slash(name: str) -> None:
    measured = {"trace": 3.0, "trace_se": 0.5, "seconds": 0.1, "layer/body/0": 1.0, "flag/nonfinite": 0.0}
    history = [
        {"step": 0, "epoch": 0, **{f"{name}/{key}": value for key, value in measured.items()}, "probes/overhead": 0.2},
        {"step": 4, "epoch": 1, f"{name}/trace": 2.0},
    ]
    names, rows = Picture(Lines("trace_over_steps", "Trace", y="trace"), name, history, {}).table()
    assert names == ["step", "epoch", "trace", "trace_se"]
    assert rows == [[0, 0, 3.0, 0.5], [4, 1, 2.0, None]]
