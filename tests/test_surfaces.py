"""A probe that yields surfaces: every logger and the report show them, and a resumed run keeps those of before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lightning_probes import EveryNSteps, HTMLReport, Probe, Surface
from lightning_probes.probing import ModelView, Surfaces
from lightning_probes.testing.zoo import CASES
from tests import wandb_offline
from tests.resumable import begin, go_on
from tests.tester import fit


class Plane(Probe):
    """The mean loss with all parameters scaled by x and the first one moved by y, and a path that grows."""

    panels = (Surfaces("loss", "Loss on a plane (unit of training)", "One sentence.", caveat="All else."),)

    def __init__(self) -> None:
        super().__init__(name="plane", schedule=EveryNSteps(2), data="train", num_samples=8)

    def measure(self, view: ModelView) -> Iterator[Surface]:
        name, first = next(iter(view.params.items()))
        x, y = np.array([0.5, 1.0, 2.0]), np.array([-1.0, 0.0])
        values = [[float(view.mean_loss({name: scale * first + shift})) for scale in x] for shift in y]
        self.carried["path"] = [*self.carried.get("path", []), [1.0, -1.0 / (view.step + 1)]]
        yield Surface("loss", x, y, values, self.carried["path"], "scale", "shift")


def test_loggers_and_the_report_show_each_step_with_its_path(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    probe, report = Plane(), HTMLReport(tmp_path / "report.html")
    loggers = [WandbLogger(save_dir=tmp_path / "wandb", mode="offline"), TensorBoardLogger(tmp_path / "board")]
    fit(CASES["cnn"].make, [probe, report], logger=loggers)
    wandb.finish()

    (run,) = wandb_offline.read_all(tmp_path / "wandb")
    assert [row["trainer/global_step"] for row in run.rows("plane/loss")] == [0, 2, 4]
    figure = run.file(run.rows("plane/loss")[-1]["plane/loss"])
    assert [trace["type"] for trace in figure["data"]] == ["contour", "scatter", "scatter"] * 3
    assert [len(trace["x"]) for trace in figure["data"][1::3]] == [1, 2, 3]
    assert [step["label"] for step in figure["layout"]["sliders"][0]["steps"]] == ["0", "2", "4"]
    surface = probe.results["plane/loss"]
    assert isinstance(surface, Surface)
    rows = run.table(run.rows("plane/loss_table")[-1]["plane/loss_table"])
    assert [row["value"] for row in rows] == surface.values.ravel().tolist()
    (path,) = (tmp_path / "board").rglob("events.out.*")
    events = EventAccumulator(str(path)).Reload()
    assert [event.step for event in events.Images("plane/loss")] == [0, 2, 4]
    text = (tmp_path / "report.html").read_text()
    assert 'data-key="plane/loss"' in text
    assert '"type": "contour"' in text


def test_a_resumed_run_keeps_the_surfaces_of_before(tmp_path: Path) -> None:
    unbroken, resumed = Plane(), Plane()
    go_on(tmp_path / "unbroken", None, [unbroken])
    go_on(tmp_path / "broken", begin(tmp_path / "broken", [Plane()]), [resumed])
    assert unbroken.figure("plane/loss").to_json() == resumed.figure("plane/loss").to_json()


def test_a_value_that_is_not_finite_raises_the_flag_and_is_a_gap(tmp_path: Path) -> None:
    class Diverging(Plane):
        """Whose loss overflows somewhere."""

        def measure(self, view: ModelView) -> Iterator[Surface]:
            for surface in super().measure(view):
                surface.values[0, 0] = np.inf
                yield surface

    probe = Diverging()
    with pytest.warns(UserWarning, match="not finite: plane/loss"):
        fit(CASES["cnn"].make, [probe])
    assert probe.history[-1]["plane/flag/nonfinite"] == 1.0
    assert probe.figure().data[0].z[0][0] is None
