"""Heatmaps: one a step with a slider, or columns side by side; a scale that tells below zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_probes.reporting import HeatmapOverSteps, Heatmaps, Panel, Picture
from lightning_probes.results import Heatmap
from tests.reporting.samples import NAME, STEPS, TRAIL, picture


def draw(panel: Panel, trail: dict[str, Any]) -> Any:
    return Picture(panel, NAME, [], trail).figure()


def heatmaps(*values: Any, labels: tuple[str, ...] = ("a", "b"), **options: Any) -> Any:
    trail = [(step, Heatmap("m", matrix, labels, labels)) for step, matrix in enumerate(values)]
    return draw(Heatmaps("m", "Heatmap", **options), {"demo/m": trail})


def matrix(trace: Any) -> list[list[float | None]]:
    return [list(row) for row in trace.z]


def test_a_slider_shows_one_heatmap_a_step_and_starts_at_the_latest() -> None:
    figure = picture("layers").figure()
    assert [trace.visible for trace in figure.data] == [False, False, None]
    (slider,) = figure.layout.sliders
    assert slider.active == 2
    assert [step.label for step in slider.steps] == [str(step) for step in STEPS]
    assert [step.args[0]["visible"] for step in slider.steps] == np.eye(3, dtype=bool).tolist()
    assert matrix(figure.data[1]) == [[1.0, 0.25], [0.25, 1.0]]


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
    (trace,) = draw(HeatmapOverSteps("m", "Heatmap"), trail).data
    assert matrix(trace) == [[1.0, None], [None, 0.5]]


def test_a_matrix_can_not_be_one_column_over_steps() -> None:
    with pytest.raises(ValueError, match="needs one column per event, got 2"):
        draw(HeatmapOverSteps("layers", "Layers"), TRAIL)
