"""Tables beside pictures: their columns have names of their own, and those of lines stay narrow."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_probes.reporting import Curves, Lines, Picture
from lightning_probes.results import Curve


def columns(x_label: str, y_label: str) -> list[str]:
    curve = Curve("path", np.arange(2.0), np.ones(2), x_label, y_label)
    names, rows = Picture(Curves("path", "Path"), "demo", [], {"demo/path": [(7, curve)]}).table()
    assert rows == [[7, 0.0, 1.0, "step 7"], [7, 1.0, 1.0, "step 7"]]
    return list(names)


@pytest.mark.parametrize(
    ("x_label", "y_label"),
    [("step", "line"), ("step (epochs)", "loss"), ("alpha", "step"), ("loss (train)", "loss (val)"), ("y", "step")],
)
def test_columns_of_curves_are_x_and_y_where_labels_would_give_two_of_one_name(x_label: str, y_label: str) -> None:
    assert columns(x_label, y_label) == ["step", "x", "y", "line"]


def test_columns_of_curves_have_the_names_of_the_axes_without_units() -> None:
    assert columns("alpha (none)", "loss (nats)") == ["step", "alpha", "loss", "line"]
    assert columns("y", "x") == ["step", "y", "x", "line"]


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
