"""The other run is an artifact of W&B, which is downloaded when a fit is set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_probes import AtFitEnd, ModeConnectivity
from tests.callbacks.models import Supervised, classification, loader, trainer
from tests.reporting.wandb.test_artifact import publish
from tests.wandb_backend import Backend

X, Y = classification()


def module(seed: int = 0) -> Supervised:
    torch.manual_seed(seed)
    return Supervised(nn.Linear(4, 3))


class Downloads(Callback):
    """What was downloaded before training began."""

    def __init__(self, server: Backend) -> None:
        self.server, self.before = server, -1

    def on_fit_start(self, *_: Any) -> None:
        self.before = self.server.downloads.count("model.ckpt")


def test_an_artifact_is_downloaded_once_when_the_fit_is_set_up(wandb_server: Backend, tmp_path: Path) -> None:
    other = module(1)
    reference = publish("run", {"model.ckpt": {"state_dict": other.state_dict()}}, tmp_path)
    probe, seen = ModeConnectivity(reference, schedule=AtFitEnd()), Downloads(wandb_server)
    trained = module()
    trainer(max_epochs=1, callbacks=[probe, seen]).fit(trained, loader(X, Y))
    assert seen.before == wandb_server.downloads.count("model.ckpt") == 1
    length = (trained.net.weight - other.net.weight).square().sum() + (trained.net.bias - other.net.bias).square().sum()
    assert probe.results["connectivity/distance"].value == pytest.approx(float(length.sqrt()), rel=1e-5)


def test_offline_is_one_sentence_before_the_first_step_that_names_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    probe = ModeConnectivity("wandb:tester/ends/run:latest")
    with pytest.raises(ValueError, match=r"^ModeConnectivity: other='wandb:.*' can't be downloaded .* as other=$"):
        trainer(max_epochs=1, callbacks=[probe]).fit(module(), loader(X, Y))
