"""Curves: a line an event from light to dark, a slider that singles one out, a table of points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_probes.reporting import Curves, Panel, Picture, static
from lightning_probes.results import Curve
from tests.reporting.samples import NAME, TRAIL, picture


def draw(panel: Panel, trail: dict[str, Any]) -> Any:
    return Picture(panel, NAME, [], trail).figure()


def brightness(colour: str) -> float:
    return 0.3 * int(colour[1:3], 16) + 0.6 * int(colour[3:5], 16) + 0.1 * int(colour[5:7], 16)


def columns(x_label: str, y_label: str) -> list[str]:
    curve = Curve("path", np.arange(2.0), np.ones(2), x_label, y_label)
    names, rows = Picture(Curves("path", "Path"), "demo", [], {"demo/path": [(7, curve)]}).table()
    assert rows == [[7, 0.0, 1.0, "step 7"], [7, 1.0, 1.0, "step 7"]]
    return list(names)


def test_curves_are_one_line_an_event_from_light_to_dark() -> None:
    figure = picture("path").figure()
    drawn = [trace for trace in figure.data if trace.fill is None]
    assert [trace.name for trace in drawn] == ["step 0", "step 10", "step 30"]
    assert [trace.y[-1] for trace in drawn] == [1.0, 0.0, -1.0]
    shades = [brightness(trace.line.color) for trace in drawn]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == 3


def test_the_point_that_curves_start_from_is_a_level_line_of_its_own_in_the_lightest_colour() -> None:
    figure = draw(Curves("path", "Loss", start="initialisation"), TRAIL)
    level, *lines = figure.data
    assert (level.name, set(level.y)) == ("initialisation", {2.0})
    assert {line.y[0] for line in lines} == {2.0}
    assert brightness(level.line.color) > max(brightness(line.line.color) for line in lines)
    assert [step.label for step in figure.layout.sliders[0].steps] == ["initialisation", "0", "10", "30", "all"]


def test_a_level_is_the_latest_value_of_a_scalar_as_a_dashed_line() -> None:
    panel, history = Curves("path", "Loss", level="null"), [{"step": k, "demo/null": 0.1 * k} for k in (1, 2)]
    layout = Picture(panel, NAME, history, TRAIL).figure().layout
    (line,) = layout.shapes
    assert (line.y0, line.y1, line.line.dash) == (0.2, 0.2, "dash")
    assert layout.annotations[-1].text == "null"
    assert not draw(panel, TRAIL).layout.shapes  # nothing is known of it yet


def test_a_chord_is_dashed_between_the_ends_of_each_curve_and_fades_with_it() -> None:
    figure = draw(Curves("path", "Loss", chord=True), TRAIL)
    curves, chords = figure.data[::2], figure.data[1::2]
    for curve, chord in zip(curves, chords, strict=True):
        assert (chord.x, chord.y) == ((curve.x[0], curve.x[-1]), (curve.y[0], curve.y[-1]))
        assert (chord.line.dash, chord.line.color, chord.showlegend) == ("dash", curve.line.color, False)
    opacity = figure.layout.sliders[0].steps[0].args[0]["opacity"]
    assert [shown == 1 for shown in opacity] == [True, True, False, False, False, False]
    canvas = static.draw(figure)
    assert [line.get_linestyle() for line in canvas.axes[0].lines] == ["-", "--"] * 3
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["step 0", "step 10", "step 30"]


def test_curve_bands_are_off_unless_asked_for() -> None:
    traces = draw(Curves("path", "Loss"), TRAIL).data
    assert len(traces) == 3
    assert len(picture("path").figure().data) == 6


def test_a_value_of_a_curve_that_is_not_finite_is_a_gap() -> None:
    curve = Curve("path", np.array([0.0, 0.5, 1.0]), np.array([1.0, np.nan, np.inf]))
    (line,) = draw(Curves("path", "Loss"), {"demo/path": [(0, curve)]}).data
    assert line.y == (1.0, None, None)


def test_many_events_are_thinned_to_the_first_the_last_and_some_between() -> None:
    trail = {"demo/path": [(step, TRAIL["demo/path"][0][1]) for step in range(100)]}
    names = [trace.name for trace in draw(Curves("path", "Loss", most=4), trail).data]
    assert names == ["step 0", "step 33", "step 66", "step 99"]


def test_a_slider_singles_out_one_curve_with_its_band_and_starts_at_all() -> None:
    figure = picture("path").figure()
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "10", "30", "all"]
    assert slider.active == 3
    full = [trace.opacity or 1.0 for trace in figure.data]
    assert list(slider.steps[3].args[0]["opacity"]) == full
    second = slider.steps[1].args[0]["opacity"]
    assert [now == before for now, before in zip(second, full, strict=True)] == [False, False, True, True, False, False]
    assert max(now / before for now, before in zip(second, full, strict=True) if now != before) < 0.5


def test_a_single_curve_has_no_slider() -> None:
    assert not draw(Curves("path", "Loss"), {"demo/path": TRAIL["demo/path"][:1]}).layout.sliders


@pytest.mark.parametrize(
    ("x_label", "y_label"),
    [("step", "line"), ("step (epochs)", "loss"), ("alpha", "step"), ("loss (train)", "loss (val)"), ("y", "step")],
)
def test_columns_of_curves_are_x_and_y_where_labels_would_give_two_of_one_name(x_label: str, y_label: str) -> None:
    assert columns(x_label, y_label) == ["step", "x", "y", "line"]


def test_columns_of_curves_have_the_names_of_the_axes_without_units() -> None:
    assert columns("alpha (none)", "loss (nats)") == ["step", "alpha", "loss", "line"]
    assert columns("y", "x") == ["step", "y", "x", "line"]
