"""`max_time` and Lightning's `Timer` count the time of training, not that of probes."""

import time
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import pytorch_lightning
from torch import nn

from lightning_probes import AtFitEnd, EveryNSteps, HTMLReport, Probe
from lightning_probes.probing.run.timers import clocks_stopped
from lightning_probes.results import Scalar
from tests.callbacks.models import Supervised, classification, loader, trainer


class Clock:
    """Stands still unless somebody takes time."""

    def __init__(self):
        self.now = 5_000.0

    def take(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


class Slow(Probe):
    """Takes 1,000 s for the dry run, and for each measurement."""

    def __init__(self, clock, name="slow", fails=False, **arguments):
        super().__init__(name=name, schedule=[EveryNSteps(2), AtFitEnd()], data="train", num_samples=8, **arguments)
        self.take, self.fails = clock.take, fails

    def prepare(self, view):
        self.take(1_000)

    def measure(self, view):
        self.take(1_000)
        if self.fails:
            raise RuntimeError("no luck")
        yield Scalar("value", 1.0)


class Training(Supervised):
    """A step takes ten seconds."""

    def __init__(self, clock):
        super().__init__(nn.Linear(4, 3))
        self.clock = clock

    def on_train_batch_start(self, *args):  # behind what probes do then, and not replayed
        self.clock.take(10)


class Own(pl.callbacks.Timer):
    pass


def steps(clock, callbacks, **arguments):
    run = trainer(callbacks=callbacks, max_epochs=50, **arguments)
    run.fit(Training(clock), loader(*classification()))
    return run.global_step


def probes_of(kind, clock):
    return {
        "none": [],
        "one": [Slow(clock)],
        "two": [Slow(clock), Slow(clock, "other")],
        "one that fails": [Slow(clock, fails=True, on_error="warn")],
    }[kind]


@pytest.mark.parametrize("kind", ["none", "one", "two", "one that fails"])
def test_max_time_leaves_as_many_steps_as_without_probes(clock, kind):
    assert steps(clock, probes_of(kind, clock), max_time="00:00:01:40") == 10


@pytest.mark.parametrize("first", [True, False])
def test_a_timer_of_any_class_and_place_tells_the_time_of_training(clock, first):
    timer, probe = Own("00:00:01:40"), Slow(clock)
    assert steps(clock, [timer, probe] if first else [probe, timer]) == 10
    assert timer.time_elapsed("train") == 100
    assert timer.state_dict()["time_elapsed"]["train"] == 100
    assert len(probe.history) == 6


def test_time_before_a_break_stays_counted(clock):
    timer = pl.callbacks.Timer("00:00:01:40")
    timer.load_state_dict({"time_elapsed": {"train": 60.0}})
    assert steps(clock, [timer, Slow(clock)]) == 4


def test_writing_a_page_and_a_logger_takes_no_training_time(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(HTMLReport, "_write", lambda *args: clock.take(1_000))
    logger = pl.loggers.CSVLogger(tmp_path)
    monkeypatch.setattr(logger, "log_metrics", lambda *args, **more: clock.take(1_000))
    best = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1)
    arguments = {"logger": logger, "enable_checkpointing": True, "log_every_n_steps": 1000}
    assert (
        steps(clock, [Slow(clock), HTMLReport(tmp_path / "page.html"), best], max_time="00:00:01:40", **arguments) == 10
    )


@pytest.mark.parametrize("package", [pl, pytorch_lightning])
def test_a_block_inside_another_is_taken_off_once(clock, package):
    timer = package.callbacks.Timer()
    run = SimpleNamespace(callbacks=[timer])
    timer.on_train_start(run, None)
    clock.take(3)
    with clocks_stopped(run, pytest.fail):
        clock.take(5)
        with clocks_stopped(run, pytest.fail):
            clock.take(7)
    clock.take(4)
    assert timer.time_elapsed() == 7


def test_timer_that_keeps_its_start_elsewhere_is_told_of_and_left_alone(clock):
    class Other(pl.callbacks.Timer):
        def __init__(self):
            super().__init__()
            del self._start_time

        def time_elapsed(self, stage="train"):
            return clock.now

    heard = []
    with clocks_stopped(SimpleNamespace(callbacks=[Other()]), heard.append):
        clock.take(1)
    assert heard == ["max_time= and Timer include the time of probes in this version of Lightning"]
