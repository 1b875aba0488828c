"""Surfaces: contours over numeric axes with a path over them, one event at a time."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from lightning_probes.reporting import Picture, Surfaces, static
from lightning_probes.reporting.panels.surface import LEVELS, PATH
from lightning_probes.results import FloatArray, Surface
from tests.reporting.samples import picture
from tests.reporting.test_static import pixel, rgb

X, Y = np.array([0.0, 1.0, 4.0]), np.array([-1.0, 1.0])
GRID = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])


def plane(*values: FloatArray, path: Any = None) -> Picture:
    trail = [(10 * k, Surface("plane", X, Y, each, path)) for k, each in enumerate(values)]
    return Picture(Surfaces("plane", "Plane"), "demo", [], {"demo/plane": trail})


def contours(shown: Picture) -> list[Any]:
    return [trace for trace in shown.figure().data if trace.type == "contour"]


def test_values_stand_at_their_numeric_positions() -> None:
    (trace,) = contours(plane(GRID))
    assert (trace.x, trace.y) == ((0.0, 1.0, 4.0), (-1.0, 1.0))
    assert [list(row) for row in trace.z] == GRID.tolist()


def test_all_events_share_one_scale_and_one_set_of_levels() -> None:
    found = contours(plane(GRID, 2 * GRID))
    assert {(trace.zmin, trace.zmax) for trace in found} == {(0.0, 10.0)}
    levels = {(trace.contours.start, trace.contours.end, trace.contours.size) for trace in found}
    assert levels == {(0.0, 10.0, 10.0 / LEVELS)}


def test_a_slider_shows_the_contours_of_a_step_together_with_its_path_and_starts_at_the_latest() -> None:
    figure = picture("plane").figure()  # whose first event has no path yet
    assert [trace.type for trace in figure.data] == ["contour", *["contour", "scatter", "scatter"] * 2]
    assert [trace.visible is not False for trace in figure.data] == [False] * 4 + [True] * 3
    (slider,) = figure.layout.sliders
    assert (slider.active, [step.label for step in slider.steps]) == (2, ["0", "10", "30"])
    assert slider.steps[1].args[0]["visible"] == [False, True, True, True, False, False, False]
    assert not plane(GRID).figure().layout.sliders


def test_the_path_is_drawn_over_the_values_and_its_end_is_the_larger_point() -> None:
    _, line, end = plane(GRID, path=[[0, -1], [1, 0], [4, 1]]).figure().data
    assert (line.x, line.y) == ((0.0, 1.0, 4.0), (-1.0, 0.0, 1.0))
    assert (end.x, end.y) == ((4.0,), (1.0,))
    assert end.marker.size > line.marker.size


def test_axes_end_where_the_grid_does_or_where_the_path_does_that_leaves_it() -> None:
    layout = plane(GRID, path=[[0, -1], [np.nan, np.nan], [9, 0]]).figure().layout
    assert (layout.xaxis.range, layout.yaxis.range) == ((0.0, 9.0), (-1.0, 1.0))


def test_a_page_has_more_room_for_a_plane_than_for_a_curve() -> None:
    plane_of_demo, curve = picture("plane"), picture("path")
    heights = [shown.panel.height(shown.figure()) for shown in (plane_of_demo, curve)]
    assert heights[0] >= heights[1] + 150


def test_axes_are_titled_as_the_surface_says() -> None:
    layout = picture("plane").figure().layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("distance", "across")


@pytest.mark.parametrize(
    "values",
    [np.where(GRID == 1, np.nan, GRID), np.where(GRID == 1, np.inf, GRID), np.full((2, 3), np.nan), np.ones((2, 3)),
     np.zeros((2, 3)), -GRID, 1e-30 * GRID, 1e30 * GRID],
)  # fmt: skip
@pytest.mark.parametrize("path", [None, [], [[0, 0]], [[0, 0], [np.nan, np.inf], [1, 1]], [[np.nan, np.nan]], [[9, 9]]])
def test_gaps_and_flat_values_are_drawn_without_a_word(values: FloatArray, path: Any) -> None:
    pytest.importorskip("matplotlib")
    shown = plane(values, path=path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "NaN" not in shown.figure().to_json()
        assert static.pixels(shown.figure()).shape == (450, 700, 3)
    (trace,) = contours(shown)
    assert trace.zmin < trace.zmax
    expected = [[None if not np.isfinite(value) else value for value in row] for row in values.tolist()]
    assert [list(row) for row in trace.z] == expected


def test_on_a_log_scale_colours_and_levels_go_by_the_logarithm_and_hover_and_ticks_by_the_value() -> None:
    values = np.array([[0.001, 0.01, np.nan], [1.0, 10.0, 31.4]])
    trail = [(0, Surface("plane", X, Y, values)), (9, Surface("plane", X, Y, 10 * values))]
    figure = Picture(Surfaces("plane", "Plane", log=True), "demo", [], {"demo/plane": trail}).figure()
    first, second = figure.data
    assert [None if z is None else round(z, 6) for z in first.z[0]] == [-3.0, -2.0, None]
    assert {(trace.zmin, round(trace.zmax, 3)) for trace in (first, second)} == {(-3.0, 2.497)}
    assert first.contours.size == pytest.approx((first.zmax - first.zmin) / LEVELS)
    assert [list(row) for row in first.text] == [["0.001", "0.01", ""], ["1", "10", "31.4"]]
    assert "%{text}" in first.hovertemplate
    assert list(first.colorbar.ticktext) == ["0.001", "0.01", "0.1", "1", "10", "100"]
    assert [round(place) for place in first.colorbar.tickvals] == [-3, -2, -1, 0, 1, 2]


def test_the_colour_bar_of_a_narrow_log_scale_has_ticks_too() -> None:
    for low, high in ((0.5, 0.55), (0.3, 6.0), (1e-9, 1e9), (2.0, 2.0), (2.3016, 2.3094), (1234567.0, 1234599.0)):
        surface = Surface("plane", X, Y, np.linspace(low, high, 6).reshape(2, 3))
        shown = Picture(Surfaces("plane", "Plane", log=True), "demo", [], {"demo/plane": [(0, surface)]})
        (trace,) = contours(shown)
        assert 4 <= len(trace.colorbar.tickvals) == len(set(trace.colorbar.ticktext)) <= 9
        assert all(trace.zmin <= place <= trace.zmax for place in trace.colorbar.tickvals)
        for place, text in zip(trace.colorbar.tickvals, trace.colorbar.ticktext, strict=True):
            assert 10**place == pytest.approx(float(text), rel=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.444, 4.09, ["0.5", "0.6", "0.8", "1", "1.5", "2", "3", "4"]),
        (0.0021, 0.0042, ["0.0025", "0.003", "0.0035", "0.004"]),
        (97.2, 103.9, ["98", "99", "100", "101", "102", "103"]),
    ],
)
def test_ticks_of_a_log_scale_are_round_values(low: float, high: float, texts: list[str]) -> None:
    surface = Surface("plane", X, Y, np.linspace(low, high, 6).reshape(2, 3))
    panel = Surfaces("plane", "Plane", log=True)
    (trace,) = contours(Picture(panel, "demo", [], {"demo/plane": [(0, surface)]}))
    assert list(trace.colorbar.ticktext) == texts


@pytest.mark.parametrize("values", [GRID, GRID - 1, np.full((2, 3), np.nan)])
def test_values_that_are_not_all_positive_are_drawn_linearly(values: FloatArray) -> None:
    panel = Surfaces("plane", "Plane", log=True)
    (trace,) = contours(Picture(panel, "demo", [], {"demo/plane": [(0, Surface("plane", X, Y, values))]}))
    assert trace.text is None
    assert [list(row) for row in trace.z] == [[None if np.isnan(v) else v for v in row] for row in values.tolist()]


def test_a_path_has_its_labels_where_they_do_not_cover_each_other_and_all_of_them_under_the_pointer() -> None:
    names = ["step 0", "step 1", "step 2", "step 9"]
    surface = Surface("plane", X, Y, GRID, [[0, -1], [0.1, -1], [2, 0], [4, 1]], path_labels=names)
    _, line, end = Picture(Surfaces("plane", "Plane"), "demo", [], {"demo/plane": [(0, surface)]}).figure().data
    assert list(line.text) == ["step 0", "", "step 2", ""]
    assert (list(line.hovertext), list(end.text), list(end.hovertext)) == (names, ["step 9"], ["step 9"])


def test_without_a_browser_labels_and_ticks_are_drawn_too() -> None:
    pytest.importorskip("matplotlib")
    axes, bar = static.draw(picture("log_plane").figure()).axes
    assert [text.get_text() for text in axes.texts] == ["step 0", "step 2", "step 6"]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0.0001", "0.01", "1", "100", "1e+04"]


def test_without_a_browser_values_path_and_gaps_are_where_the_numbers_are() -> None:
    pytest.importorskip("matplotlib")
    values = np.array([[0.0, 0.0, np.nan], [0.0, 0.0, 0.0], [8.0, 8.0, 8.0], [8.0, 8.0, 8.0]])
    surface = Surface("plane", [0, 1, 2], [0, 1, 2, 3], values, [[0.25, 0.5], [1.0, 0.5]])
    shown = Picture(Surfaces("plane", "Plane"), "demo", [], {"demo/plane": [(0, surface)]})
    canvas = static.draw(shown.figure())
    assert pixel(canvas, 0.6, 0.5) == rgb(PATH)
    assert pixel(canvas, 0.6, 0.2) == pytest.approx(rgb("#440154"), abs=3)
    assert pixel(canvas, 0.3, 2.5) == pytest.approx(rgb("#fde725"), abs=3)
    assert pixel(canvas, 1.9, 0.1) == rgb("#e5e5e5")


def test_the_table_has_a_row_a_point_of_the_latest_grid() -> None:
    columns, rows = plane(GRID, np.where(GRID == 5, np.nan, GRID)).table()
    assert columns == ("step", "x", "y", "value")
    assert rows == [
        [10, 0.0, -1.0, 0.0], [10, 1.0, -1.0, 1.0], [10, 4.0, -1.0, 2.0],
        [10, 0.0, 1.0, 3.0], [10, 1.0, 1.0, 4.0], [10, 4.0, 1.0, None],
    ]  # fmt: skip
