"""How many panels W&B's page may draw by itself for the four probes at their defaults, and which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import wandb
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import nn

import lightning_probes
from lightning_probes import (
    EveryNSteps,
    FisherTrace,
    GradientNorms,
    InitInterpolation,
    LayerCKA,
    Probe,
    Scalar,
    Sharpness,
    TrainingRegime,
)
from lightning_probes.probing import Intervention, ModelView
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
NAMES = ("fisher", "interpolation", "cka", "sharpness")
LAYERS = ("net/0", "net/1", "net/3")


class Validated(Supervised):
    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(self(batch[0]), batch[1]))


def everything(root: Path, probes: Sequence[Callback], network: nn.Module | None = None) -> OfflineRun:
    """A fit to which each key of the probes applies: BatchNorm, validation data, classes, Adam, checkpoints, a flag."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    module = Validated(network or mlp, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3.0))
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
    drawn = (keys - hidden) | set(run.config["_wandb"].get("visualize", ()))
    theirs = {"epoch", "val/loss", "trainer/global_step"}
    return {key for key in drawn if not key.startswith("_")} - theirs


def test_the_four_probes_at_their_defaults_make_at_most_20_panels(tmp_path: Path) -> None:
    probes = [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]
    run = everything(tmp_path, probes)
    assert "sharpness/lambda_max_preconditioned" in probes[3].history[-1]
    assert "interpolation/bn_gap" in probes[1].history[-1]
    assert len(probes[1].history) > 1
    panels = automatic(run) | {"probes/flags"}  # whether a flag rises with such steps is up to rounding
    assert panels == PICTURES | CHARTS | SCALARS | {"probes/flags"}
    assert len(panels) <= 20


ERRORS = {
    "fisher/trace_se", "interpolation/max_rise_se", "sharpness/lambda_max_se", "sharpness/sam_se",
    "sharpness/trace_se", *(f"sharpness/trace/layer/{layer}_se" for layer in LAYERS),
}  # fmt: skip
DETAILS = {
    "fisher/loss", "interpolation/distance", "interpolation/distance_normalized", "interpolation/plateau_fraction",
    "interpolation/bn_gap", "cka/off_diagonal_mean",
    "sharpness/lambda_max_residual", "sharpness/lambda_max_preconditioned", "sharpness/loss",
    *(f"{name}/seconds" for name in NAMES),
}  # fmt: skip
FLAGS = {
    *(f"{name}/flag/{flag}" for name in NAMES for flag in ("nonfinite", "not_converged")), "fisher/flag/explosion",
    "sharpness/flag/edge_of_stability", "sharpness/flag/unstable", "sharpness/flag/sharp",
}  # fmt: skip
SUMMARY = {"fisher/trace_max", "fisher/explosion_ratio", "fisher/trace_max_at_loss"}
TABLES = {
    "fisher/events", "sharpness/events", "cka/layers_table", "cka/to_init_table",
    *(f"{chart}_coloured" for chart in CHARTS), *(f"Custom Chart Tables/{chart}_table" for chart in CHARTS),
}  # fmt: skip
BY_LAYER = {
    *(f"{key}/layer/{layer}" for key in ("fisher", "sharpness/lambda_max", "sharpness/trace") for layer in LAYERS),
    *(f"cka/layer/{layer}" for layer in (*LAYERS, "net/2")),
}


def test_details_of_another_number_are_hidden_and_all_other_keys_are_shown(tmp_path: Path) -> None:
    fisher = FisherTrace(per_layer=True, explosion_factor=1.5, at_loss=1000.0)
    sharpness = Sharpness(per_layer=True, quantities=("lambda_max", "sam", "trace"), sharp_threshold=0.1)
    run = everything(tmp_path, [fisher, InitInterpolation(), LayerCKA(per_layer=True), sharpness])
    ours = {name: definition["hidden"] for name, definition in run.definitions.items() if "/" in name}
    hidden = {name for name, is_hidden in ours.items() if is_hidden}
    assert hidden == ERRORS | DETAILS | FLAGS | SUMMARY | TABLES
    shown = ours.keys() - hidden - {"trainer/global_step"}
    assert shown == PICTURES | SCALARS | BY_LAYER | {"sharpness/trace", "probes/flags"}


class Marked(Probe):
    """Two numbers that end alike, of which one is a detail; both are missing at first."""

    def __init__(self) -> None:
        super().__init__(name="marked", schedule=EveryNSteps(1), data="train", num_samples=4)

    def measure(self, view: ModelView) -> Iterator[Scalar]:
        value = float("nan") if view.step == 0 else 1.0
        yield Scalar("loss", value)
        yield Scalar("other/loss", value, standard_error=0.5, detail=True)


def test_what_a_probe_marks_decides_and_not_how_a_key_ends(tmp_path: Path) -> None:
    run = everything(tmp_path, [Marked()])
    ours = {name: found["hidden"] for name, found in run.definitions.items() if name.startswith("marked/")}
    assert {name for name, hidden in ours.items() if not hidden} == {"marked/loss"}
    assert ours.keys() >= {"marked/other/loss", "marked/other/loss_se"}
    assert automatic(run) & ours.keys() == {"marked/loss"}


def test_a_picture_that_is_a_detail_is_logged_and_hidden(tmp_path: Path) -> None:
    run = everything(tmp_path, [GradientNorms(), TrainingRegime()])
    ours = {key for key in automatic(run) if not key.startswith("probes/")}
    assert ours == {"gradients/global_norm", "gradients/layers", "regime/regime", "regime/relative_over_steps"}
    logged = {key for row in run.history for key in row}
    assert logged >= {"gradients/global_norm_over_steps", "gradients/update_ratio", "regime/stability_ratio"}


class Residual(nn.Module):
    """A small network to which every callback applies: classes, BatchNorm, residual additions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(1, 8), nn.BatchNorm1d(4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.into(x[..., None]))
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(tokens.mean(1))


def every_callback() -> dict[str, Callback]:
    """All callbacks of the package at their defaults, but for what makes them slow here."""
    other = Validated(Residual())
    few: dict[str, dict[str, Any]] = {
        "FisherPenalty": {"coefficient": 1e-3}, "ModeConnectivity": {"other": other}, "LossPlane": {"resolution": 3},
    }  # fmt: skip
    kinds = {name: getattr(lightning_probes, name) for name in lightning_probes.__all__}
    return {
        name: kind(**few.get(name, {}))
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Callback) and name not in ("HTMLReport", "Probe")
    }


def test_all_that_look_make_at_most_40_panels_any_four_of_them_20_and_an_intervention_2(tmp_path: Path) -> None:
    callbacks = every_callback()
    run = everything(tmp_path, [*callbacks.values()], Residual())
    panels = automatic(run) | {"probes/flags"}
    counts = Counter(key.split("/")[0] for key in panels)
    assert counts.keys() == {callback.name for callback in callbacks.values()} | {"probes"}  # type: ignore[attr-defined]
    changing = {callback.name for callback in callbacks.values() if isinstance(callback, Intervention)}
    assert all(counts.pop(name) <= 2 for name in changing)
    assert counts.total() <= 40
    shared = counts.pop("probes")
    assert shared + sum(count for _, count in counts.most_common(4)) <= 20
