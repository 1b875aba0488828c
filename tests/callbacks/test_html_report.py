"""When the report is written, what it then knows, and that training does not notice."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lightning_probes import AtCheckpoints, EveryNSteps, HTMLReport, Probe, Result, Scalar
from lightning_probes.probing.view import ModelView
from lightning_probes.testing.zoo import Fit
from tests.callbacks.models import Supervised, classification, loader
from tests.tester import Flat, Run, assert_same, fingerprint, fit, probe

STEPS = 4


def small() -> Fit:
    x, y = classification()
    net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3))
    return Fit(Supervised(net), loader(x, y), loader(x, y))


class StepProbe(Probe):
    """Measures the step it is at."""

    def __init__(self, schedule: Any, name: str = "steps") -> None:
        super().__init__(name=name, schedule=schedule, data="train", num_samples=4)

    def measure(self, view: ModelView) -> Iterator[Result]:
        yield Scalar("now", float(view.step))


class Reader(L.Callback):
    """Reads the report after each batch."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(latest(self.path) if self.path.exists() else None)


class Stopper(L.Callback):
    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.at = error, at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.at:
            raise self.error


class SavesAtTheEnd(Checkpoint):
    """Lightning calls it last, so that probes measure this checkpoint in `on_fit_end`."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint("last.ckpt")


def latest(path: Path) -> int:
    """What `StepProbe` measured last, as the report says."""
    found = re.search(r">steps/now</td><td[^>]*>(\d+)<", path.read_text())
    assert found is not None
    return int(found[1])


def fact(path: Path, name: str) -> str:
    found = re.search(rf"<dt>{name}</dt><dd>(.*?)</dd>", path.read_text())
    assert found is not None
    return found[1]


def without_report(run: Run) -> Flat:
    """All that a run has left, but for the callback itself among the callbacks."""
    return {key: text for key, text in fingerprint(run).items() if key != "callbacks" and "HTMLReport" not in key}


def saver(directory: Path, every: int = 2) -> ModelCheckpoint:
    return ModelCheckpoint(directory / "checkpoints", every_n_train_steps=every, save_top_k=-1)


@pytest.mark.parametrize("report_first", [True, False])
def test_it_is_written_after_each_checkpoint_with_what_was_measured_by_then(tmp_path: Path, report_first: bool) -> None:
    path = tmp_path / "below" / "report.html"
    both: list[L.Callback] = [StepProbe(AtCheckpoints(1.0)), HTMLReport(path)]
    reader = Reader(path)
    fit(small, [*(both[::-1] if report_first else both), reader, saver(tmp_path)], enable_checkpointing=True)
    # Saved after steps 2 and 4; what a checkpoint made due was measured, and written, with the batch that followed.
    assert reader.seen[:2] == [None, None]
    assert reader.seen[3] == 2
    assert latest(path) == STEPS


@pytest.mark.parametrize("report_first", [True, False])
def test_the_last_page_has_what_was_measured_after_the_last_checkpoint(tmp_path: Path, report_first: bool) -> None:
    path = tmp_path / "report.html"
    both: list[L.Callback] = [StepProbe(AtCheckpoints(1.0)), HTMLReport(path)]
    fit(small, [*(both[::-1] if report_first else both), SavesAtTheEnd()], enable_checkpointing=True)
    assert (latest(path), fact(path, "status")) == (STEPS, "finished")
    assert "train_samples</td><td" in path.read_text(), "settings have what was drawn"


@pytest.mark.parametrize("error", [RuntimeError("no <more>"), KeyboardInterrupt()])
def test_it_is_written_when_training_stops_by_an_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "report.html"
    run = fit(
        small, [HTMLReport(path), StepProbe(EveryNSteps(1)), Stopper(error, 3)], catch=(RuntimeError, SystemExit)[
            isinstance(error, KeyboardInterrupt)
        ]
    )  # fmt: skip
    assert fact(path, "status").startswith(f"stopped by {type(error).__name__}")
    assert "no <more>" not in path.read_text()
    assert latest(path) >= 2
    assert "save_checkpoint" not in vars(run.trainer)


def test_an_error_before_the_first_measurement_leaves_an_earlier_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("earlier")
    fit(small, [Stopper(RuntimeError(), 0), HTMLReport(path), StepProbe(EveryNSteps(2, start=2))], catch=RuntimeError)
    assert path.read_text() == "earlier"


def test_the_error_that_stopped_training_is_the_one_that_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> str:
        raise ValueError("of the page")

    monkeypatch.setattr("lightning_probes.callbacks.html_report.page", broken)
    callbacks = [HTMLReport(tmp_path / "report.html"), StepProbe(EveryNSteps(1)), Stopper(KeyError("mine"), 2)]
    with pytest.raises(KeyError, match="mine"), pytest.warns(UserWarning, match="was not written: ValueError: of the"):
        fit(small, callbacks)


def test_a_page_that_can_not_be_written_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("lightning_probes.callbacks.html_report.write_atomically", full)
    with pytest.warns(UserWarning, match="no space left"):
        run = fit(small, [HTMLReport(tmp_path / "report.html"), StepProbe(EveryNSteps(1))])
    assert run.trainer.global_step == STEPS


def test_a_reader_never_sees_half_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replaced = tmp_path / "report.html", []
    path.write_text("earlier")
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        if Path(target) == path:
            replaced.append((Path(source).read_text()[-8:], path.read_text()[:7]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    fit(small, [HTMLReport(path), StepProbe(EveryNSteps(1))])
    assert replaced == [("</html>\n", "earlier")]
    assert [file.name for file in tmp_path.iterdir() if "report" in file.name] == ["report.html"]


def test_training_is_undisturbed(tmp_path: Path) -> None:
    def run(name: str, *callbacks: L.Callback) -> Flat:
        directory = tmp_path / name
        directory.mkdir()
        done = fit(small, [*callbacks, saver(directory, 1)], directory, enable_checkpointing=True, max_epochs=2)
        return without_report(done)

    probes = [probe(kind) for kind in ("fisher", "interpolation", "cka", "sharpness")]
    assert_same(run("reported", HTMLReport(tmp_path / "report.html"), *probes), run("plain"))
    assert (tmp_path / "report.html").exists()


def test_an_error_leaves_training_as_it_would_be(tmp_path: Path) -> None:
    def run(*callbacks: L.Callback) -> Flat:
        done = fit(small, [*callbacks, Stopper(RuntimeError(), 3)], tmp_path, catch=RuntimeError)
        return without_report(done)

    assert_same(run(HTMLReport(tmp_path / "report.html"), probe("fisher")), run())


def test_a_second_fit_writes_its_own_page(tmp_path: Path) -> None:
    path, report = tmp_path / "report.html", HTMLReport(tmp_path / "report.html")
    fit(small, [report, StepProbe(EveryNSteps(1))])
    path.unlink()
    fit(small, [report, StepProbe(EveryNSteps(1), name="other")])
    assert "other/now" in path.read_text()
    assert "steps/now" not in path.read_text()


def test_a_fit_that_a_callback_ends_is_said_to_have_stopped_early(tmp_path: Path) -> None:
    class Enough(L.Callback):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            trainer.should_stop = True

    fit(small, [HTMLReport(tmp_path / "report.html"), StepProbe(EveryNSteps(1)), Enough()])
    assert fact(tmp_path / "report.html", "status") == "stopped early"


def test_the_first_process_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    fit(small, [HTMLReport(tmp_path / "report.html"), StepProbe(EveryNSteps(1))])
    fit(small, [HTMLReport(tmp_path / "report.html"), StepProbe(EveryNSteps(1)), Stopper(RuntimeError(), 2)],
        catch=RuntimeError)  # fmt: skip
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("what", ["fast_dev_run", "validate"])
def test_nothing_is_written_where_nothing_is_to_be_kept(tmp_path: Path, what: str) -> None:
    callbacks = [HTMLReport(tmp_path / "report.html"), StepProbe(EveryNSteps(1))]
    if what == "fast_dev_run":
        fit(small, callbacks, fast_dev_run=True)
    else:
        L.Trainer(callbacks=callbacks, logger=False, enable_progress_bar=False).validate(
            BoringModel(), torch.randn(4, 32), verbose=False
        )
    assert not (tmp_path / "report.html").exists()


def test_without_probes_it_says_what_to_add() -> None:
    with pytest.raises(MisconfigurationException, match=r"add a probe, as in Trainer\(callbacks=\[FisherTrace"):
        fit(small, [HTMLReport()])


@pytest.mark.parametrize("path", ["folder", "file/report.html"])
def test_a_path_that_can_not_be_a_file_is_refused_before_training(path: str) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    with pytest.raises(MisconfigurationException, match=rf"path='{path}'"):
        fit(small, [HTMLReport(path), StepProbe(EveryNSteps(1))])


def test_lightning_cli_builds_it() -> None:
    arguments = ["--trainer.callbacks+=lightning_probes.HTMLReport", "--trainer.callbacks.path=some/page.html"]
    cli = LightningCLI(BoringModel, run=False, args=arguments, save_config_callback=None)
    [report] = [callback for callback in cli.trainer.callbacks if isinstance(callback, HTMLReport)]
    assert report.path == Path("some/page.html")
