"""Two copies of a network part at the start of training, and end in one basin if they part a little later.

Copies are trained on from a step with the same weights, optimizer and schedule, but other orders of the data. If they
part at the initialisation, the error on the line between their ends rises; if they part some twenty steps later, it
hardly does (Frankle et al. 2020, arXiv:1912.05671). A small ResNet with a high learning rate is trained on small
digits, and `instability` trains all copies and measures between them.

python examples/gallery/stable_after_the_start.py --out pictures     # about two minutes of one CPU core
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from statistics import median

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION
from lightning_probes.studies import InstabilityResult, instability


class Block(nn.Module):
    """Two convolutions with BatchNorm, beside a shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        stride = out // channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


class ResNet(LightningModule):
    """Two blocks, cross-entropy, and SGD with a high learning rate that falls to zero."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            Block(channels, channels), Block(channels, 2 * channels),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, 10),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.4, momentum=0.9)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def make_data(seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """1,300 images of 8 x 8 pixels, in the order of a seed."""
    pixels, classes = (torch.tensor(array) for array in load_digits(return_X_y=True))
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:1300]
    images = pixels[chosen].float().reshape(-1, 1, 8, 8)
    data = TensorDataset((images - images.mean()) / images.std(), classes[chosen])
    return DataLoader(data, 32, shuffle=True, generator=torch.Generator().manual_seed(seed))


def make_trainer(steps: int) -> Trainer:
    return Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def studied(channels: int, steps: int, spawn_steps: tuple[int, ...], seed: int) -> InstabilityResult:
    """A network from a seed, with two copies from each spawn step."""
    with tempfile.TemporaryDirectory() as directory:
        return instability(
            partial(make_trainer, steps), partial(ResNet, channels, steps), make_data, spawn_steps=spawn_steps,
            seed=100 * seed, connectivity={"num_samples": 1300, "num_alphas": 9}, directory=directory,
        )  # fmt: skip


def picture(results: list[InstabilityResult]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    for axes, key, scale, label in zip(
        canvas.subplots(1, 2),
        ("error_barrier_mean", "barrier_mean"),
        (100, 1),
        ("error barrier (percentage points)", "loss barrier (nats per sample)"),
        strict=True,
    ):
        columns = [result.to_dict() for result in results]
        steps = [str(step) for step in columns[0]["spawn_step"]]
        for number, column in enumerate(columns):
            label_of_all = None if number else f"each of {len(columns)} initialisations"
            heights = [scale * value for value in column[key]]
            axes.plot(steps, heights, color=GREY, marker="o", markersize=3, linewidth=1, label=label_of_all)
        middle = [scale * median(values) for values in zip(*(column[key] for column in columns), strict=True)]
        axes.plot(steps, middle, color=BLUE, marker="o", linewidth=2, label="median")
        axes.set(xlabel="step at which the copies part", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        if scale == 100:
            axes.axhline(2, color=VERMILLION, linewidth=1, linestyle="--", label="2 %: stable below")
            axes.set_title("Error on the line between the copies", fontsize=11, loc="left")
        else:
            axes.set_title("Loss on the line between the copies", fontsize=11, loc="left")
        axes.legend(frameon=False, fontsize=9)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Run the study from each seed, draw the barriers over the spawn step, and compare step 0 with later ones."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    channels, steps, spawn_steps, seeds = (4, 120, (0, 60), 2) if fast else (8, 250, (0, 20, 100), 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of training batches")
        results = [studied(channels, steps, spawn_steps, seed) for seed in range(seeds)]
    out.mkdir(parents=True, exist_ok=True)
    picture(results).savefig(out / "stable_after_the_start.png")
    losses = [result.to_dict()["barrier_mean"] for result in results]
    errors = [100 * median(each) for each in zip(*(r.to_dict()["error_barrier_mean"] for r in results), strict=True)]
    print(
        "median barrier of the error, in percentage points: "
        + ", ".join(f"{error:.1f} if the copies part at step {k}" for k, error in zip(spawn_steps, errors, strict=True))
    )
    assert all(later < first for first, *rest in losses for later in rest)
    assert fast or (errors[0] > 2 and errors[1] < 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="a smaller network and fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
