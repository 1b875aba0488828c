"""A kind of picture is one class: whoever draws, tabulates, logs or shows pictures asks it, and knows no kind."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import lightning_probes
from lightning_probes.reporting import Event, Panel, Picture, log_event, static
from lightning_probes.reporting.panels.base import Drawing, Measured, Table
from tests.reporting.html.test_page import drawn
from tests.reporting.samples import HISTORY, NAME, PANELS, picture
from tests.wandb_offline import read_all

PACKAGE = Path(lightning_probes.__file__).parent
KINDS = Panel.__subclasses__()
OTHERS = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "reporting" / "panels"]


@dataclass(frozen=True)
class Total(Panel):
    """The sum of the losses so far: a kind that the package has never heard of."""

    def is_empty(self, measured: Measured) -> bool:
        return not measured.history

    def draw(self, measured: Measured) -> Drawing:
        steps, losses = zip(*((entry["step"], entry["demo/loss"]) for entry in measured.history), strict=True)
        line = {"color": "#0072b2"}
        return [{"type": "scatter", "mode": "lines", "x": list(steps), "y": list(losses), "line": line}], {}

    def table(self, measured: Measured) -> Table:
        return ("total",), [[sum(entry["demo/loss"] for entry in measured.history)]]


TOTAL = Picture(Total("total", "Total loss", "One sentence.", caveat="The rest."), NAME, HISTORY, {})


def test_a_kind_of_ones_own_is_a_figure_and_an_image_and_part_of_a_page() -> None:
    pytest.importorskip("matplotlib")
    assert TOTAL.figure().layout.title.text == "Total loss"
    assert static.pixels(TOTAL.figure()).std() > 0
    assert re.search("<h3>Total loss</h3>.*One sentence.*The rest", drawn(TOTAL), re.DOTALL)


def test_a_kind_of_ones_own_is_logged_with_its_table(run_dir: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    log_event([WandbLogger(save_dir=run_dir, mode="offline")], Event(3, NAME, pictures=[TOTAL]))
    wandb.finish()
    (run,) = read_all(run_dir)
    (row,) = run.rows("demo/total")
    assert run.table(row["demo/total_table"]) == [{"total": 4.5}]
    assert [run.definitions[key]["hidden"] for key in ("demo/total", "demo/total_table")] == [False, True]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_asks_a_panel_of_which_kind_it_is(path: Path) -> None:
    names = {kind.__name__ for kind in KINDS}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked = {name.id for argument in node.args[1:] for name in ast.walk(argument) if isinstance(name, ast.Name)}
            assert not asked & names, f"line {node.lineno}"


def test_axes_are_titled_with_their_units() -> None:
    figure = picture("trace_over_loss").figure()
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("loss (nats)", "demo/trace")
    figure = picture("path").figure()
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("alpha", "loss (nats)")


@pytest.mark.parametrize("key", [panel.key for panel in PANELS])
def test_figures_are_written_as_plain_numbers(key: str) -> None:
    text = picture(key).figure().to_json()
    assert "bdata" not in text
    assert "NaN" not in text
