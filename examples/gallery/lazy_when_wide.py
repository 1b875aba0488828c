"""The wider a network is, the closer it stays to its expansion about the initialisation.

In NTK parametrisation the parameters of a wide network hardly move, and training is lazy: the network is the
first-order expansion of its logits about the initialisation, up to an error that falls as one over the width (Lee et
al. 2019, arXiv:1902.06720). One hidden layer of ReLUs learns 256 of the 8 x 8 digits by full-batch gradient descent on
the squared loss, and `InitInterpolation(linearized=True)` measures the error at the end.

python examples/gallery/lazy_when_wide.py --out pictures     # half a minute of one CPU core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, InitInterpolation
from lightning_probes.reporting.panels.style import BLUE, GREY

WIDTHS, SEEDS = (64, 256, 1024, 4096), 3


class Wide(LightningModule):
    """One hidden layer whose width is divided out, squared loss, plain gradient descent."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, 64))
        self.second = nn.Parameter(torch.randn(10, width))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images @ self.first.T / 8) @ self.second.T / len(self.first) ** 0.5

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().sum() / (2 * len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)


def digits(samples: int = 256) -> DataLoader[tuple[Tensor, ...]]:
    """The first of the 8 x 8 digits, standardised, with one-hot targets, in one batch."""
    loaded = load_digits()
    images = torch.tensor(loaded.data[:samples], dtype=torch.float32)
    targets = nn.functional.one_hot(torch.tensor(loaded.target[:samples]), 10).float()
    return DataLoader(TensorDataset((images - images.mean()) / images.std(), targets), samples)


def labels(module: Wide, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return module(batch[0]), batch[1].argmax(1)


def error(width: int, seed: int, steps: int) -> float:
    """Train, and measure how far the network is from its expansion."""
    seed_everything(seed, verbose=False)
    probe = InitInterpolation(num_alphas=2, linearized=True, schedule=AtFitEnd(), data="train", predict_fn=labels)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Wide(width), digits())
    return probe.history[-1]["interpolation/linearized_error"]


def picture(errors: np.ndarray) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    axes = canvas.subplots()
    axes.plot(WIDTHS, errors, color=BLUE, marker="o", linestyle="none", label=None)
    axes.plot(WIDTHS, errors.mean(1), color=BLUE, label=f"mean of {errors.shape[1]} seeds")
    reference = errors[0].mean() * WIDTHS[0] / np.array(WIDTHS)
    axes.plot(WIDTHS, reference, color=GREY, linestyle="--", label="one over the width")
    axes.set(xscale="log", yscale="log", xticks=WIDTHS, xticklabels=WIDTHS, xlabel="units in the hidden layer")
    axes.minorticks_off()
    axes.set_ylabel("interpolation/linearized_error")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("Distance from the linearised network, over how far the logits moved", fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train networks of four widths, draw their errors, and compare the widest with the narrowest."""
    steps, seeds = (30, 1) if fast else (100, SEEDS)
    errors = np.array([[error(width, seed, steps) for seed in range(seeds)] for width in WIDTHS])
    out.mkdir(parents=True, exist_ok=True)
    picture(errors).savefig(out / "lazy_when_wide.png")
    narrow, wide = errors[0].mean(), errors[-1].mean()
    print(f"error of the expansion: {narrow:.3f} at width {WIDTHS[0]}, {wide:.4f} at width {WIDTHS[-1]}")
    assert 0 < wide < narrow / 10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer steps and seeds")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
