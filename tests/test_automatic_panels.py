"""How many panels W&B's page may draw by itself for the four probes at their defaults, and which."""

from __future__ import annotations

from pathlib import Path

import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from lightning_probes import FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from tests import wandb_offline
from tests.callbacks.models import Supervised, loader, trainer
from tests.wandb_offline import OfflineRun

PICTURES = {
    "fisher/trace_over_steps", "fisher/trace_over_loss", "cka/layers", "cka/to_init",
    "sharpness/stability_ratio_over_steps", "sharpness/lambda_max_over_steps",
}  # fmt: skip
CHARTS = {"interpolation/loss", "interpolation/val/loss", "interpolation/accuracy", "interpolation/val/accuracy"}
SCALARS = {
    "fisher/trace", "interpolation/monotonic", "interpolation/max_rise", "cka/to_init_mean", "cka/null_p95",
    "sharpness/lambda_max", "sharpness/stability_ratio", "sharpness/sam", "probes/overhead",
}  # fmt: skip


class Validated(Supervised):
    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(self(batch[0]), batch[1]))


def everything(root: Path, probes: list[Probe]) -> OfflineRun:
    """A fit to which each key of the probes applies: BatchNorm, validation data, classes, Adam, checkpoints, a flag."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    module = Validated(network, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3.0))
    x = torch.randn(64, 4)
    data = loader(x, x[:, :3].argmax(1))
    logger = WandbLogger(save_dir=root, mode="offline")
    checkpoints = ModelCheckpoint(root / "checkpoints", save_top_k=-1)
    trainer(max_epochs=3, callbacks=[*probes, checkpoints], logger=logger, enable_checkpointing=True).fit(
        module, data, data
    )
    wandb.finish()
    (run,) = wandb_offline.read_all(root)
    return run


def automatic(run: OfflineRun) -> set[str]:
    """Each key of the history and the summary that was not defined as hidden, and each native chart."""
    keys = {key for row in run.history for key in row} | set(run.summary)
    hidden = {name for name, definition in run.definitions.items() if definition["hidden"]}
    drawn = (keys - hidden) | set(run.config["_wandb"]["visualize"])
    theirs = {"epoch", "val/loss", "trainer/global_step"}
    return {key for key in drawn if not key.startswith("_")} - theirs


def test_the_four_probes_at_their_defaults_make_at_most_20_panels(tmp_path: Path) -> None:
    probes = [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]
    run = everything(tmp_path, probes)
    assert "sharpness/lambda_max_preconditioned" in probes[3].history[-1]
    assert "interpolation/bn_gap" in probes[1].history[-1]
    assert len(probes[1].history) > 1
    panels = automatic(run)
    assert panels == PICTURES | CHARTS | SCALARS | {"probes/flags"}
    assert len(panels) <= 20
