from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_probes.reporting import Curves, HeatmapOverSteps, Heatmaps, Lines, Panel, Picture
from lightning_probes.results import Curve, Heatmap
from tests.reporting.samples import HISTORY, NAME, PANELS, STEPS, TRAIL, picture

RISING = [{"step": s, "epoch": 0, "demo/trace": float(s), "demo/trace_se": 1.0} for s in (1, 2, 3, 4, 5)]


def draw(panel: Panel, name: str, history: list[dict[str, float]], trail: dict[str, Any]) -> Any:
    return Picture(panel, name, history, trail).figure()


def lines(history: list[dict[str, float]], **options: Any) -> Any:
    return draw(Lines("lines", "Lines", y="trace", **options), NAME, history, {})


def heatmaps(*values: Any, labels: tuple[str, ...] = ("a", "b"), **options: Any) -> Any:
    trail = [(step, Heatmap("m", matrix, labels, labels)) for step, matrix in enumerate(values)]
    return draw(Heatmaps("m", "Heatmap", **options), NAME, [], {"demo/m": trail})


def matrix(trace: Any) -> list[list[float | None]]:
    return [list(row) for row in trace.z]


def brightness(colour: str) -> float:
    return 0.3 * int(colour[1:3], 16) + 0.6 * int(colour[3:5], 16) + 0.1 * int(colour[5:7], 16)


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


def test_axes_are_titled_with_their_units() -> None:
    figure = picture("trace_over_loss").figure()
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("loss (nats)", "demo/trace")
    figure = picture("path").figure()
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("alpha", "loss (nats)")


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


def test_curves_are_one_line_an_event_from_light_to_dark() -> None:
    figure = picture("path").figure()
    drawn = [trace for trace in figure.data if trace.fill is None]
    assert [trace.name for trace in drawn] == ["step 0", "step 10", "step 30"]
    assert [trace.y[-1] for trace in drawn] == [1.0, 0.0, -1.0]
    shades = [brightness(trace.line.color) for trace in drawn]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == 3


def test_the_point_that_curves_start_from_is_a_level_line_of_its_own_in_the_lightest_colour() -> None:
    figure = draw(Curves("path", "Loss", start="initialisation"), NAME, [], TRAIL)
    level, *lines = figure.data
    assert (level.name, set(level.y)) == ("initialisation", {2.0})
    assert {line.y[0] for line in lines} == {2.0}
    assert brightness(level.line.color) > max(brightness(line.line.color) for line in lines)
    assert [step.label for step in figure.layout.sliders[0].steps] == ["initialisation", "0", "10", "30", "all"]


def test_curve_bands_are_off_unless_asked_for() -> None:
    traces = draw(Curves("path", "Loss"), NAME, [], TRAIL).data
    assert len(traces) == 3
    assert len(picture("path").figure().data) == 6


def test_a_value_of_a_curve_that_is_not_finite_is_a_gap() -> None:
    curve = Curve("path", np.array([0.0, 0.5, 1.0]), np.array([1.0, np.nan, np.inf]))
    (line,) = draw(Curves("path", "Loss"), NAME, [], {"demo/path": [(0, curve)]}).data
    assert line.y == (1.0, None, None)


def test_many_events_are_thinned_to_the_first_the_last_and_some_between() -> None:
    trail = {"demo/path": [(step, TRAIL["demo/path"][0][1]) for step in range(100)]}
    names = [trace.name for trace in draw(Curves("path", "Loss", most=4), NAME, [], trail).data]
    assert names == ["step 0", "step 33", "step 66", "step 99"]


def test_a_slider_shows_one_heatmap_a_step_and_starts_at_the_latest() -> None:
    figure = picture("layers").figure()
    assert [trace.visible for trace in figure.data] == [False, False, None]
    (slider,) = figure.layout.sliders
    assert slider.active == 2
    assert [step.label for step in slider.steps] == [str(step) for step in STEPS]
    assert [step.args[0]["visible"] for step in slider.steps] == np.eye(3, dtype=bool).tolist()
    assert matrix(figure.data[1]) == [[1.0, 0.25], [0.25, 1.0]]


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
    assert not draw(Curves("path", "Loss"), NAME, [], {"demo/path": TRAIL["demo/path"][:1]}).layout.sliders


def test_a_single_heatmap_has_no_slider() -> None:
    assert not heatmaps(np.eye(2)).layout.sliders


def test_hovering_shows_row_column_and_value() -> None:
    (trace,) = heatmaps(np.eye(2)).data
    assert all(part in trace.hovertemplate for part in ("%{y}", "%{x}", "%{z"))
    assert (trace.y, trace.x) == (("a", "b"), ("a", "b"))


def test_similarities_share_one_scale_over_all_steps() -> None:
    figure = heatmaps([[1.0, 0.5], [0.5, 1.0]], [[1.0, 1.5], [0.5, 1.0]])
    assert {(trace.zmin, trace.zmax) for trace in figure.data} == {(0.0, 1.5)}


def test_a_negative_value_turns_red_and_leaves_the_colours_above_zero_alone() -> None:
    plain, negative = heatmaps(np.eye(2)).data[0], heatmaps([[1.0, -0.25], [-0.25, 1.0]]).data[0]
    assert (negative.zmin, negative.zmax) == (-0.25, 1.0)
    below = [colour for at, colour in negative.colorscale if at < 0.2]
    assert below == ["#b2182b"]
    above = negative.colorscale[2:]
    assert [colour for _, colour in above] == [colour for _, colour in plain.colorscale]
    assert above[0][0] == pytest.approx(0.2)


@given(low=st.floats(-1.0, 0.0))
@example(low=-0.019772)
def test_any_negative_value_leaves_a_scale_that_plotly_takes(low: float) -> None:
    (trace,) = heatmaps([[1.0, low], [low, 1.0]]).data
    places = [at for at, _ in trace.colorscale]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, 1.0)


def test_a_cell_that_is_not_finite_is_a_gap() -> None:
    assert matrix(heatmaps([[1.0, np.nan], [0.5, 1.0]]).data[0]) == [[1.0, None], [0.5, 1.0]]


def test_a_layer_that_is_called_twice_keeps_both_rows() -> None:
    (trace,) = heatmaps(np.eye(3), labels=("a", "b", "a")).data
    assert trace.y == ("a", "b", "a (2)")


def test_long_layer_names_are_shown_by_what_tells_them_apart_and_hovered_whole() -> None:
    names = tuple(f"encoder.blocks.{k}.attention.projection" for k in range(40))
    figure = heatmaps(np.eye(40), labels=names)
    ticks = figure.layout.yaxis
    assert len(ticks.ticktext) <= 24
    assert all(len(text) <= 20 for text in ticks.ticktext)
    assert len(set(ticks.ticktext)) == len(ticks.ticktext)
    assert set(ticks.tickvals) <= set(names)
    assert figure.data[0].y == names


def test_one_column_heatmaps_stand_side_by_side_over_steps() -> None:
    (trace,) = picture("to_init").figure().data
    assert (trace.x, trace.y) == (("0", "10", "30"), ("a", "b"))
    assert matrix(trace) == [[1.0, 0.75, 0.5], [1.0, 1.0, 1.0]]


def test_a_layer_that_was_not_seen_at_a_step_is_a_gap_there() -> None:
    trail = {"demo/m": [(0, Heatmap("m", [[1.0]], ("a",), ("x",))), (5, Heatmap("m", [[0.5]], ("b",), ("x",)))]}
    (trace,) = draw(HeatmapOverSteps("m", "Heatmap"), NAME, [], trail).data
    assert matrix(trace) == [[1.0, None], [None, 0.5]]


def test_a_matrix_can_not_be_one_column_over_steps() -> None:
    with pytest.raises(ValueError, match="needs one column an event, got 2"):
        draw(HeatmapOverSteps("layers", "Layers"), NAME, [], TRAIL)


@pytest.mark.parametrize("key", [panel.key for panel in PANELS])
def test_figures_are_written_as_plain_numbers(key: str) -> None:
    text = picture(key).figure().to_json()
    assert "bdata" not in text
    assert "NaN" not in text
