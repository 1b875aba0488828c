"""A callback that monitors a probe's key is told of where it would see old values."""

import re
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from lightning_probes import AtFitEnd, EveryNEpochs, EveryNSteps, FisherTrace, LogSpacedSteps
from tests.callbacks.models import Supervised, classification, loader, trainer

STALE = "which is not measured in each epoch"


class OnPlateau(Supervised):
    monitor = "fisher/trace"

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor}}


class OnLoss(OnPlateau):
    monitor = "loss"

    def on_train_epoch_end(self):
        self.log("loss", 1.0)


def said(schedule, *callbacks, kind=Supervised, **arguments):
    """What a fit of eight epochs of four batches warns of."""
    probe = FisherTrace(num_samples=8, schedule=schedule)
    run = trainer(callbacks=[probe, *callbacks], **{"max_epochs": 8, **arguments})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(kind(nn.Linear(4, 3)), loader(*classification()))
    return [str(warning.message) for warning in caught if STALE in str(warning.message)]


def stopping(key="fisher/trace"):
    return EarlyStopping(key, patience=100, check_on_train_epoch_end=True)


@pytest.mark.parametrize("schedule", [EveryNSteps(9), LogSpacedSteps(4), [EveryNSteps(4, stop=20), AtFitEnd()]])
def test_a_monitored_key_that_is_not_measured_each_epoch_is_said_once(schedule):
    [message] = said(schedule, stopping())
    assert re.match("FisherTrace 'fisher': EarlyStopping monitors 'fisher/trace'", message)
    assert "EveryNEpochs(1)" in message


def test_a_scheduler_and_a_checkpoint_that_monitor_are_named(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="fisher/trace_se")
    messages = said(EveryNSteps(9), best, kind=OnPlateau, enable_checkpointing=True)
    assert sorted(message.split()[2] for message in messages) == ["ModelCheckpoint", "ReduceLROnPlateau"]


@pytest.mark.parametrize(
    ("schedule", "arguments"),
    [
        ([EveryNEpochs(1), AtFitEnd()], {}),
        (EveryNSteps(4), {}),
        ([EveryNEpochs(2), EveryNSteps(8)], {}),  # one epoch each
        (EveryNSteps(2), {"accumulate_grad_batches": 2}),
        (EveryNSteps(9), {"max_epochs": 1}),
    ],
)
def test_nothing_is_said_where_each_epoch_has_a_value(schedule, arguments):
    assert said(schedule, stopping(), **arguments) == []


def test_nothing_is_said_of_keys_of_others():
    class Other(L.Callback):
        monitor = "fisherman/trace"

    assert said(EveryNSteps(9), Other(), kind=OnLoss) == []
