from types import SimpleNamespace

import pytest
from torch import nn

from lightning_probes.probing.run import announce as module
from lightning_probes.probing.run.announce import announce
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.reporting import Event
from lightning_probes.results import Flag


@pytest.fixture
def written(monkeypatch):
    values = {}
    monkeypatch.setattr(module, "write_summary", lambda loggers, found: values.update(found))
    return values


def trainer():
    return SimpleNamespace(callback_metrics={}, loggers=[], is_global_zero=True, should_stop=False)


def event(*flags):
    return Event(3, "p", {f"p/flag/{flag.key}": 1.0 for flag in flags}, flags)


@pytest.mark.filterwarnings("ignore:first", "ignore:second")
def test_the_first_flag_that_stops_a_run_is_named_and_not_a_later_one(written):
    stopping = trainer()
    announce(TrainerRun(stopping, nn.Identity()), event(Flag("first", True), Flag("second", True)), "stop")
    announce(TrainerRun(stopping, nn.Identity()), event(Flag("second", True)), "stop")
    assert stopping.should_stop
    assert written == {"probes/stopped_by": "first"}


def test_a_flag_of_level_info_stops_nothing(written):
    going_on = trainer()
    announce(TrainerRun(going_on, nn.Identity()), event(Flag("edge", True, level="info")), "stop")
    assert not going_on.should_stop
    assert written == {}
    assert float(going_on.callback_metrics["p/flag/edge"]) == 1.0
