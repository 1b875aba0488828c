"""A learning rate above 2/λ throws training into a flatter place.

Gradient descent on the squared loss should diverge if the learning rate exceeds 2 over the largest curvature. A wide
network does not: its loss rises for some steps, the curvature falls meanwhile, and training goes on where it is stable
again (Lewkowycz et al. 2020, arXiv:2003.02218). One hidden layer of 512 ReLUs in NTK parametrisation learns 256 of the
8 x 8 digits by full-batch gradient descent, and `TrainingRegime` watches.

python examples/gallery/catapult.py --out pictures     # some seconds of one CPU core
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
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION

BELOW, ABOVE = 1.5, 6.0  # learning rate times the first curvature


class Wide(LightningModule):
    """One hidden layer whose width is divided out, squared loss, plain gradient descent."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, 64))
        self.second = nn.Parameter(torch.randn(10, width))
        self.lr = 0.0

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images @ self.first.T / 8) @ self.second.T / len(self.first) ** 0.5

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().sum() / (2 * len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def digits(samples: int = 256) -> DataLoader[tuple[Tensor, ...]]:
    """The first of the 8 x 8 digits, standardised, with one-hot targets, in one batch."""
    loaded = load_digits()
    images = torch.tensor(loaded.data[:samples], dtype=torch.float32)
    targets = nn.functional.one_hot(torch.tensor(loaded.target[:samples]), 10).float()
    return DataLoader(TensorDataset((images - images.mean()) / images.std(), targets), samples)


def trained(times: float, steps: int) -> TrainingRegime:
    """Train with seed 0 and a learning rate of so many times the inverse of the first curvature."""
    seed_everything(0, verbose=False)
    module, data = Wide(), digits()
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
    losses, curvatures = canvas.subplots(1, 2)
    for (label, probe), colour in zip(probes.items(), (BLUE, VERMILLION), strict=True):
        steps = [entry["step"] + 1 for entry in probe.history]
        for axes, key in ((losses, "loss_ratio"), (curvatures, "lambda_ratio")):
            axes.plot(steps, [entry[f"regime/{key}"] for entry in probe.history], color=colour, marker=".", label=label)
    for axes in (losses, curvatures):
        axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
        axes.set(xscale="log", yscale="log", xlabel="step + 1")
        axes.spines[["top", "right"]].set_visible(False)
    losses.set_ylabel("loss over the first one")
    losses.legend(frameon=False, fontsize=9)
    losses.set_title("Above 2/λ the loss first rises", fontsize=11, loc="left")
    curvatures.set_ylabel("λ_max over the first one")
    curvatures.set_title("and training lands in a flatter place", fontsize=11, loc="left")
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train below and above the threshold, draw loss and curvature, and compare peaks and last curvatures."""
    steps = 80 if fast else 400
    probes = {f"learning rate {times:g}/λ": trained(times, steps) for times in (BELOW, ABOVE)}
    out.mkdir(parents=True, exist_ok=True)
    picture(probes).savefig(out / "catapult.png")
    below, above = (probe.history[-1] for probe in probes.values())
    print(
        f"at {BELOW:g}/λ the loss peaks at {below['regime/peak_loss_ratio']:.2f} times the first one and λ ends at "
        f"{below['regime/lambda_ratio']:.2f} times; at {ABOVE:g}/λ they are {above['regime/peak_loss_ratio']:.2f} and "
        f"{above['regime/lambda_ratio']:.2f}"
    )
    assert [entry["regime/regime"] for entry in (below, above)] == [0, 1]  # lazy, catapult
    assert above["regime/peak_loss_ratio"] > 2 * below["regime/peak_loss_ratio"]
    assert above["regime/lambda_ratio"] < below["regime/lambda_ratio"] / 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
