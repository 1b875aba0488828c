from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

from lightning_probes import reporting
from lightning_probes.reporting import Curves, Event, Lines, pictures
from tests.reporting.samples import HISTORY, NAME, PANELS, TRAIL, picture

ROOM = Path(reporting.__file__).parent
FILES = sorted(ROOM.rglob("*.py"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["scalars", "summary"])
def test_a_number_that_is_not_finite_never_reaches_a_logger(where: str, value: float) -> None:
    with pytest.raises(ValueError, match="'demo/trace' is"):
        Event(0, NAME, **{where: {"demo/trace": value}})  # type: ignore[arg-type]


def test_a_picture_may_not_replace_a_scalar_of_its_name() -> None:
    with pytest.raises(ValueError, match="'demo/path' names a scalar and a picture"):
        Event(0, NAME, {"demo/path": 1.0}, pictures=[picture("path")])


def test_panels_with_nothing_to_show_are_left_out() -> None:
    panels = (*PANELS, Curves("val/path", "No validation data"), Lines("accuracy", "No logits", y="accuracy"))
    assert [p.key for p in pictures(panels, NAME, HISTORY, TRAIL)] == [f"demo/{panel.key}" for panel in PANELS]


def test_drawing_what_was_never_measured_says_so() -> None:
    empty = picture("path").__class__(Curves("path", "Loss"), "other", HISTORY, TRAIL)
    with pytest.raises(ValueError, match="nothing to draw for 'other/path'"):
        empty.figure()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOM)))
def test_importing_the_room_imports_no_plotting_and_no_logging_library(file: Path) -> None:
    imported = set()
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            imported.add(str(statement.module).partition(".")[0])
    assert not imported & {"plotly", "matplotlib", "wandb", "lightning", "torch"}
