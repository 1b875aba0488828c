from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_probes.reporting import Heatmaps, Lines, Picture, static
from lightning_probes.results import Heatmap
from tests.reporting.samples import HISTORY, NAME, PANELS, picture

pytest.importorskip("matplotlib")


def pixel(canvas: Any, x: float, y: float) -> tuple[int, ...]:
    """Colour at a place in data coordinates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    agg = FigureCanvasAgg(canvas)
    agg.draw()
    image = np.asarray(agg.buffer_rgba())
    column, row = canvas.axes[0].transData.transform((x, y))
    return tuple(int(value) for value in image[image.shape[0] - 1 - int(row), int(column), :3])


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))


@pytest.mark.parametrize("key", [panel.key for panel in PANELS])
def test_every_kind_of_figure_is_drawn(key: str) -> None:
    figure = picture(key).figure()
    image = static.pixels(figure)
    figure.data = ()
    blank = static.pixels(figure)
    assert image.shape == blank.shape == (450, 700, 3)
    assert (image != blank).any(axis=2).sum() > 500


def test_line_band_and_reference_are_where_the_numbers_are() -> None:
    canvas = static.draw(picture("trace_over_steps").figure())
    assert pixel(canvas, 10, 2.0) == rgb("#0072b2")
    # Inside the band but off the line: a fifth of the colour on white, and white above the band.
    assert pixel(canvas, 10, 2.3) == pytest.approx([round(0.8 * 255 + 0.2 * c) for c in rgb("#0072b2")], abs=2)
    assert pixel(canvas, 10, 2.8) == (255, 255, 255)
    assert [line.get_ydata()[0] for line in canvas.axes[0].lines if line.get_linestyle() == "--"] == [3.0]


@pytest.mark.parametrize(("x", "y", "value"), [(0, 0, 1.0), (1, 0, 0.5), (0, 1, 0.5)])
def test_a_cell_has_the_colour_of_its_value_at_the_active_step(x: int, y: int, value: float) -> None:
    figure = picture("layers").figure()
    left, right = {1.0: ("#fde725", "#fde725"), 0.5: ("#26828e", "#1f9e89")}[value]
    expected = [(a + b) / 2 for a, b in zip(rgb(left), rgb(right), strict=True)]
    assert pixel(static.draw(figure), x, y) == pytest.approx(expected, abs=3)


def test_a_gap_in_a_heatmap_is_grey() -> None:
    heatmap = Heatmap("m", [[1.0, np.nan], [0.5, 1.0]], ("a", "b"), ("c", "d"))
    figure = Picture(Heatmaps("m", "Heatmap"), NAME, [], {"demo/m": [(0, heatmap)]}).figure()
    assert pixel(static.draw(figure), 1, 0) == rgb("#e5e5e5")


def test_texts_scales_and_the_step_of_a_slider_are_carried_over() -> None:
    canvas = static.draw(picture("layers").figure())
    assert canvas.get_suptitle() == "Layers, step 30"
    assert len(canvas.axes) == 2, "one heatmap and its colour bar"
    assert [label.get_text() for label in canvas.axes[0].get_yticklabels()] == ["a", "b"]
    panel = Lines("lines", "Trace", "One sentence.", y="trace", y_label="trace (nats)", log_x=True, log_y=True)
    (axes,) = static.draw(Picture(panel, NAME, HISTORY, {}).figure()).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step + 1", "trace (nats)")
    assert axes.get_title(loc="left") == "One sentence."


def test_curves_are_named_in_a_legend() -> None:
    (legend,) = static.draw(picture("path").figure()).legends
    assert [text.get_text() for text in legend.get_texts()] == ["step 0", "step 10", "step 30"]


def test_a_png_is_written(tmp_path: Any) -> None:
    static.draw(picture("to_init").figure()).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_pyplot_alone() -> None:
    from matplotlib import pyplot, rcParams

    mine = pyplot.figure()
    before = (pyplot.get_fignums(), pyplot.get_backend(), dict(rcParams))
    static.pixels(picture("path").figure())
    assert (pyplot.get_fignums(), pyplot.get_backend(), dict(rcParams)) == before
    assert pyplot.gcf() is mine
    pyplot.close(mine)
