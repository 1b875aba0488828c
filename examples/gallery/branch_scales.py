"""Blocks that add as much as the stream has make it explode; scaled by one over the root of the depth they train.

In a residual network without normalisation each block should add little to the stream (De and Smith 2020,
arXiv:2002.10444). Two networks of 24 blocks of ReLUs with the same weights differ in the scale of their branches alone:
1, and one over the root of the depth. `ResidualFlow` measures what each block adds while SGD trains them on ten classes
of Gaussian clusters.

python examples/gallery/branch_scales.py --out pictures     # about a minute of one CPU core
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps, LogSpacedSteps, ResidualFlow
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION

WIDTH = 48


DEPTH = 24


class Classifier(LightningModule):
    """Blocks of ReLUs without normalisation, cross-entropy, and SGD with momentum."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.stem, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        for layer in (self.stem, *self.blocks):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, signal: Tensor) -> Tensor:
        z = self.stem(signal).relu()
        for block in self.blocks:
            z = z + self.scale * block(z).relu()
        return self.head(z)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def clusters(samples: int = 1000) -> TensorDataset:
    """Ten classes of three Gaussian clusters each, in 64 dimensions."""
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 3, 64, generator=draws)
    classes = torch.arange(10).repeat(samples // 10)
    points = centres[classes, torch.randint(3, (samples,), generator=draws)]
    points = points + torch.randn(samples, 64, generator=draws)
    return TensorDataset(points / points.std(), classes)


class Trained(NamedTuple):
    """What was measured: ratios of the blocks before the first step, path length over steps, accuracy at the end."""

    ratios: list[float]
    steps: list[float]
    lengths: list[float]
    median: float
    accuracy: float


def trained(scale: float, steps: int) -> Trained:
    """Train with seed 0, in batches of 64, and measure along the way."""
    seed_everything(0, verbose=False)
    data, model, probe = clusters(), Classifier(scale), ResidualFlow(schedule=LogSpacedSteps(4))
    before = ResidualFlow(schedule=EveryNSteps(1, stop=0), name="before")
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[before, probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, 64, shuffle=True))
    with torch.no_grad():
        right = model(data.tensors[0]).argmax(1) == data.tensors[1]
    ratios = before.results["before/ratio"].values[:, 0].tolist()
    key = "residual/path_length"
    times, lengths = ([entry[which] for entry in probe.history if key in entry] for which in ("step", key))
    return Trained(ratios, times, lengths, probe.history[0]["residual/ratio_median"], float(right.double().mean()))


def picture(networks: dict[str, Trained]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    blocks, lengths = canvas.subplots(1, 2)
    for (label, network), colour in zip(networks.items(), (BLUE, VERMILLION), strict=True):
        text = f"{label}, accuracy {100 * network.accuracy:.0f} %"
        blocks.plot(range(1, DEPTH + 1), network.ratios, marker="o", markersize=3, color=colour, label=text)
        lengths.plot([step + 1 for step in network.steps], network.lengths, marker="o", markersize=3, color=colour)
    blocks.set(xlabel="block", ylabel="norm of the branch over the stream", ylim=(0, None))
    blocks.legend(frameon=False, fontsize=9)
    blocks.set_title("What each block adds, before the first step", fontsize=11, loc="left")
    last = networks[list(networks)[-1]]
    if len(last.steps) == 1:  # the first step of training has broken it
        where = (last.steps[0] + 1, last.lengths[0])
        lengths.annotate(
            "0 or not finite from the first step on", where, (8, -4), textcoords="offset points", fontsize=8
        )
    lengths.axhline(1, color=GREY, linewidth=1, linestyle="--")
    lengths.set(xscale="log", xlabel="step + 1", ylabel="length of the way over the distance")
    lengths.set_title("Way through the stream (1 = straight)", fontsize=11, loc="left")
    for axes in (blocks, lengths):
        axes.spines[["top", "right"]].set_visible(False)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train both networks, draw what their blocks add, and compare ratios and accuracies."""
    steps = 100 if fast else 200
    scaled, plain = (trained(scale, steps) for scale in (1 / math.sqrt(DEPTH), 1.0))
    out.mkdir(parents=True, exist_ok=True)
    networks = {f"branch × {1 / math.sqrt(DEPTH):.2f}": scaled, "branch × 1": plain}
    picture(networks).savefig(out / "branch_scales.png")
    print(
        f"ratio of branch to stream {scaled.median:.2f} and accuracy {scaled.accuracy:.2f} with scaled branches, "
        f"{plain.median:.2f} and {plain.accuracy:.2f} without a scale"
    )
    assert plain.median > 3 * scaled.median
    assert scaled.accuracy > plain.accuracy + 0.3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
