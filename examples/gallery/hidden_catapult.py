"""A warm-up hides a catapult, and with cross-entropy a curvature above the threshold is no sign of one.

The theory of the catapult is about gradient descent on the squared loss from the first step on (Lewkowycz et al. 2020,
arXiv:2003.02218). The same network as in `catapult.py` is trained with the same learning rate of 6/λ, but reached over
100 steps: the curvature falls when the rate passes the threshold, and by then the loss is so low that its rise does not
reach the first one. With cross-entropy the curvature falls by itself as samples are fitted, and even 12/λ raises
nothing.

python examples/gallery/hidden_catapult.py --out pictures     # some seconds of one CPU core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import Sharpness, TrainingRegime
from lightning_probes.reporting.panels.style import BLUE, GREEN, GREY, VERMILLION

KEYS = {"loss_ratio": "loss over the first one", "lambda_ratio": "λ_max over the first one"}
KEYS["stability_ratio"] = "λ_max over threshold"


class Wide(LightningModule):
    """One hidden layer whose width is divided out; a learning rate that rises over the first steps, if asked for."""

    def __init__(self, cross_entropy: bool, warm_up: int, width: int = 512) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, 64))
        self.second = nn.Parameter(torch.randn(10, width))
        self.cross_entropy, self.warm_up, self.lr = cross_entropy, warm_up, 0.0

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images @ self.first.T / 8) @ self.second.T / len(self.first) ** 0.5

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.cross_entropy:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])
        return (self(batch[0]) - batch[1]).square().sum() / (2 * len(batch[0]))

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        rising = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warm_up))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rising, "interval": "step"}}


def digits(samples: int = 256) -> DataLoader[tuple[Tensor, ...]]:
    """The first of the 8 x 8 digits, standardised, with one-hot targets, in one batch."""
    loaded = load_digits()
    images = torch.tensor(loaded.data[:samples], dtype=torch.float32)
    targets = nn.functional.one_hot(torch.tensor(loaded.target[:samples]), 10).float()
    return DataLoader(TensorDataset((images - images.mean()) / images.std(), targets), samples)


def trained(times: float, steps: int, cross_entropy: bool = False, warm_up: int = 1) -> TrainingRegime:
    """Train with seed 0 and a learning rate of so many times the inverse of the first curvature."""
    seed_everything(0, verbose=False)
    module, data = Wide(cross_entropy, warm_up), digits()
    curvature = Sharpness(quantities=("lambda_max",)).evaluate(module, data)["sharpness/lambda_max"].value
    module.lr = times / curvature
    probe = TrainingRegime()
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return probe


def picture(probes: dict[str, TrainingRegime]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    for axes, (title, probe) in zip(canvas.subplots(1, 2, sharey=True), probes.items(), strict=True):
        steps = [entry["step"] + 1 for entry in probe.history]
        for (key, label), colour in zip(KEYS.items(), (VERMILLION, GREEN, BLUE), strict=True):
            axes.plot(steps, [entry[f"regime/{key}"] for entry in probe.history], color=colour, marker=".", label=label)
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
        axes.set(xscale="log", yscale="log", xlabel="step + 1")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=11, loc="left")
    canvas.axes[0].set_ylabel("no unit")
    canvas.axes[0].legend(frameon=False, fontsize=9)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train in both ways, draw what happened, and compare the peak with that of the same rate from the start."""
    steps, warm_up = (120, 60) if fast else (400, 100)
    hidden, at_once = trained(6.0, steps, warm_up=warm_up), trained(6.0, steps)
    other = trained(12.0, steps, cross_entropy=True)
    out.mkdir(parents=True, exist_ok=True)
    titles = f"Squared loss, 6/λ after {warm_up} steps of warm-up", "Cross-entropy, 12/λ from the start"
    picture(dict(zip(titles, (hidden, other), strict=True))).savefig(out / "hidden_catapult.png")
    peaks = [probe.history[-1]["regime/peak_loss_ratio"] for probe in (at_once, hidden, other)]
    print(
        f"largest loss over the first one: {peaks[0]:.2f} at 6/λ at once, {peaks[1]:.2f} after a warm-up, "
        f"{peaks[2]:.2f} with cross-entropy at 12/λ"
    )
    assert peaks[0] > 2 > 1.05 > max(peaks[1:])
    assert hidden.history[-1]["regime/lambda_ratio"] < 0.6
    assert max(entry["regime/stability_ratio"] for entry in other.history) > 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
