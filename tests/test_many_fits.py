"""Fits, checkpoints and directories in every order: a probe always knows its own run, and no other."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNEpochs, EveryNSteps, Probe, Result, Scalar
from tests.resumable import resumable
from tests.tester import fit, probe

LONG = {"max_epochs": 9}


class Simple(Probe):
    """Measures the loss at every step."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(
            **{"name": "simple", "schedule": EveryNSteps(1), "data": "train", "num_samples": 8, **arguments}
        )

    def measure(self, view: Any) -> Iterator[Result]:
        yield Scalar("loss", view.mean_loss({}))


class Saves(Callback):
    """Saves by hand."""

    def __init__(self, path: Path, step: int, hook: str = "on_train_batch_end") -> None:
        self.path = path
        self.step = step
        setattr(self, hook, self.save)

    def save(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def steps(each: Probe) -> list[float]:
    return [row["step"] for row in each.history]


def resumed_from(checkpoint: Path, directory: Path, up_to: int, each: Probe | None = None, **arguments: Any) -> Probe:
    each = each or Simple()
    fit(resumable, [each], directory, ckpt_path=checkpoint, **{**LONG, "max_steps": up_to, **arguments})
    return each


def twice(between: Callable[[Any], None], more: int) -> Callable[[Any, Any], None]:
    """Two fits of one Trainer, something between, and a checkpoint after."""

    def drive(trainer: Any, made: Any) -> None:
        trainer.fit(made.module, **made.arguments())
        between(trainer)
        trainer.fit_loop.epoch_loop.max_steps += more
        trainer.fit(made.module, **made.arguments())
        trainer.save_checkpoint("x.ckpt")

    return drive


def test_a_second_fit_into_another_directory_takes_the_measurements_along(tmp_path: Path) -> None:
    def relocate(trainer: Any) -> None:
        trainer.loggers = [CSVLogger(tmp_path, name="second")]

    first = CSVLogger(tmp_path, name="first")
    fit(resumable, [Simple()], tmp_path, drive=twice(relocate, 2), logger=first, max_steps=2, **LONG)
    assert steps(resumed_from(Path("x.ckpt"), tmp_path, 5)) == [0, 1, 2, 3, 4]
    assert len((tmp_path / "second" / "version_0" / "probes" / "simple.jsonl").read_text().splitlines()) == 4


def test_a_checkpoint_before_the_first_batch_of_a_second_fit_holds_what_was_measured(tmp_path: Path) -> None:
    callbacks = [Simple(), Saves(tmp_path / "early.ckpt", 2, "on_train_start")]
    fit(resumable, callbacks, tmp_path, drive=twice(lambda _: None, 2), max_steps=2, **LONG)
    assert steps(resumed_from(tmp_path / "early.ckpt", tmp_path, 5)) == [0, 1, 2, 3, 4]


def test_a_second_fit_with_nothing_to_do_forgets_nothing(tmp_path: Path) -> None:
    fit(resumable, [Simple()], tmp_path, drive=twice(lambda _: None, 0), max_epochs=1)
    state = torch.load("x.ckpt", weights_only=True)["callbacks"]["simple"]
    assert state["last_step"] == 4


def test_validating_a_checkpoint_between_fits_takes_nothing_up(tmp_path: Path) -> None:
    each = Simple()

    def drive(trainer: Any, made: Any) -> None:
        trainer.fit(made.module, **made.arguments())
        trainer.save_checkpoint("old.ckpt")
        trainer.fit_loop.epoch_loop.max_steps = 4
        trainer.fit(made.module, **made.arguments())
        trainer.validate(made.module, made.val, ckpt_path="old.ckpt")
        trainer.fit_loop.epoch_loop.max_steps = 6
        trainer.fit(made.module, **made.arguments())

    fit(resumable, [each], tmp_path, drive=drive, max_steps=2, **LONG)
    assert steps(each) == [0, 1, 2, 3, 4, 5]


def test_a_used_probe_that_resumes_another_run_keeps_nothing_of_its_last_run(tmp_path: Path) -> None:
    fit(resumable, [Saves(tmp_path / "plain.ckpt", 2)], tmp_path, max_steps=3)
    used, needs_start = Simple(), probe("interpolation", schedule=AtFitEnd())
    fit(resumable, [used, needs_start], tmp_path, max_steps=5)
    resumed_from(tmp_path / "plain.ckpt", tmp_path, 4, used)
    resumed_from(tmp_path / "plain.ckpt", tmp_path, 4, needs_start)
    assert steps(used) == [2, 3]
    assert steps(needs_start) == []  # the initialisation of this run is not known


def test_going_back_to_an_early_checkpoint_leaves_a_later_one_whole(tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(resumable, [Simple(), every], tmp_path, enable_checkpointing=True, max_steps=4)
    assert steps(resumed_from(tmp_path / "step=2.ckpt", tmp_path, 3, enable_checkpointing=True)) == [0, 1, 2]
    assert steps(resumed_from(tmp_path / "step=4.ckpt", tmp_path, 5, enable_checkpointing=True)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("end", [True, False])
def test_the_end_of_an_epoch_is_measured_once_whichever_hook_wrote_the_checkpoint(end: bool, tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=end)
    fit(resumable, [Simple(schedule=EveryNEpochs(1)), saves], tmp_path, enable_checkpointing=True, max_epochs=1)
    later = Simple(schedule=EveryNEpochs(1))
    resumed_from(tmp_path / "epoch=0.ckpt", tmp_path, -1, later, max_epochs=3)
    assert steps(later) == [5, 10, 15]


def test_a_checkpoint_written_before_the_first_batch_is_measured(tmp_path: Path) -> None:
    each = Simple(schedule=AtCheckpoints(1.0))
    fit(resumable, [each, Saves(tmp_path / "init.ckpt", 0, "on_train_start")], tmp_path, max_steps=3)
    assert steps(each) == [0]


class Breaks(Simple):
    """At step 3."""

    def measure(self, view: Any) -> Iterator[Result]:
        if view.step == 3:
            raise ZeroDivisionError
        yield from super().measure(view)


def test_a_checkpoint_on_exception_does_not_count_the_interrupted_measurement(tmp_path: Path) -> None:
    saves = OnExceptionCheckpoint(tmp_path)
    fit(resumable, [Breaks(), saves], tmp_path, catch=ZeroDivisionError, enable_checkpointing=True, max_steps=5)
    state = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["callbacks"]["simple"]
    assert state["last_step"] == 2


class FailsAtFirst(Simple):
    needs_init_state = True

    def __init__(self, fails: bool = False) -> None:
        super().__init__(on_error="warn")
        self.fails = fails

    def prepare(self, view: Any) -> None:
        if self.fails:
            raise ValueError("not now")

    def measure(self, view: Any) -> Iterator[Result]:
        yield Scalar("knows", view.init_state is not None)


@pytest.mark.filterwarnings("ignore:.*not now")
@pytest.mark.parametrize("fails", [(True, False), (False, True)])
def test_a_probe_that_was_left_out_hands_on_the_initialisation(fails: tuple[bool, bool], tmp_path: Path) -> None:
    checkpoint, every = None, {"enable_checkpointing": True, **LONG}
    for number, at_first in enumerate(fails, start=2):
        saves = Saves(tmp_path / f"{number}.ckpt", number)
        callbacks = [FailsAtFirst(at_first), saves]
        fit(resumable, callbacks, tmp_path, ckpt_path=checkpoint, max_steps=number + 1, **every)
        checkpoint = tmp_path / f"{number}.ckpt"
    last = FailsAtFirst()
    fit(resumable, [last], tmp_path, ckpt_path=checkpoint, max_steps=5, **every)
    assert all(row["simple/knows"] for row in last.history)
    assert last.history[-1]["step"] == 4


class Full(CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(key.startswith("simple/") for key in metrics):
            raise OSError("disk full")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_does_not_end_a_fit_whose_probe_only_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="disk full"):
        run = fit(resumable, [Simple(on_error="warn")], tmp_path, logger=Full(tmp_path), max_steps=3)
    assert run.trainer.global_step == 3


def test_files_that_cannot_be_written_are_told_and_end_neither_fit_nor_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "probes").write_text("in the way")
    callbacks = [Simple(), Saves(tmp_path / "x.ckpt", 2)]
    with pytest.warns(UserWarning, match="the files that a resumed run needs can't be written to .*probes"):
        run = fit(resumable, callbacks, tmp_path, enable_checkpointing=True, max_steps=3)
    assert run.trainer.global_step == 3
    assert steps(resumed_from(tmp_path / "x.ckpt", tmp_path, 4)) == [2, 3]


@pytest.mark.parametrize("name", ["run/simple", "run//simple", "/simple"])
def test_any_name_stays_in_the_directory_and_moves_with_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    callbacks = [Simple(name=name), Saves(tmp_path / "here" / "x.ckpt", 2)]
    fit(resumable, callbacks, tmp_path / "here", enable_checkpointing=True, max_steps=3)
    assert len(list((tmp_path / "here" / "probes").glob("*.jsonl"))) == 1
    shutil.move(tmp_path / "here", tmp_path / "there")
    later = resumed_from(tmp_path / "there" / "x.ckpt", tmp_path / "there", 4, Simple(name=name))
    assert steps(later) == [0, 1, 2, 3]


def test_the_last_event_is_drawn_also_where_a_late_checkpoint_asked_for_it(tmp_path: Path) -> None:
    class SavesLast(Callback):
        def on_train_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "x.ckpt")

    each = Simple(schedule=[EveryNSteps(1), AtCheckpoints(1.0)])
    fit(resumable, [each, SavesLast()], tmp_path, max_steps=34, max_epochs=20)
    assert len(each.history) == 35
    assert not each.progress.undrawn


def test_a_copy_of_a_probe_has_a_key_of_its_own_until_it_is_attached() -> None:
    first = probe("fisher")
    key = first.state_key  # which the probe keeps from now on
    assert key not in (copy.copy(first).state_key, copy.deepcopy(first).state_key)
