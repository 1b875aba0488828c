"""Half of a network does when it is wide.

A wide network keeps a low loss if a random half of the units of each layer is dropped and the others count twice; in a
narrow one half of the units are no network at all (Shevchenko and Mondelli 2020, arXiv:1912.10095). Three networks of
two hidden layers are trained on ten classes of Gaussian clusters, and `DropoutStability` measures each at the end.

python examples/gallery/half_a_network.py --out pictures     # about a minute of one CPU core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, DropoutStability
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION


class Classifier(LightningModule):
    """Two hidden layers of a width, cross-entropy, and SGD with a learning rate that falls to zero."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, signal: Tensor) -> Tensor:
        return self.layers(signal)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def clusters(samples: int = 1300) -> TensorDataset:
    """Ten classes of three Gaussian clusters each, in 64 dimensions."""
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 3, 64, generator=draws)
    classes = torch.arange(10).repeat(samples // 10)
    points = centres[classes, torch.randint(3, (samples,), generator=draws)]
    points = points + torch.randn(samples, 64, generator=draws)
    return TensorDataset(points / points.std(), classes)


def trained(width: int, steps: int) -> DropoutStability:
    """Train with seed 0, in batches of 128."""
    seed_everything(0, verbose=False)
    probe = DropoutStability(schedule=AtFitEnd(), halves=20)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(width, steps), DataLoader(clusters(), 128, shuffle=True))
    return probe


def picture(widths: list[int], measured: list[dict[str, float]]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    losses, errors = canvas.subplots(1, 2)
    rises = [entry["dropout/rise"] for entry in measured]
    losses.errorbar(
        widths,
        rises,
        [2 * entry["dropout/rise_se"] for entry in measured],
        color=BLUE,
        marker="o",
        label="mean ± 2 s.e.",
    )
    losses.plot(
        widths,
        [entry["dropout/rise_best"] for entry in measured],
        color=VERMILLION,
        marker="o",
        label="best of 20 halves",
    )
    losses.set(xscale="log", yscale="log", xticks=widths, xticklabels=widths, xlabel="units in each hidden layer")
    losses.minorticks_off()
    losses.set_ylabel("rise of the loss (nats per sample)")
    losses.legend(frameon=False, fontsize=9)
    losses.set_title("Loss without half of the units", fontsize=11, loc="left")
    errors.plot(widths, [100 * entry["dropout/error_rise"] for entry in measured], color=BLUE, marker="o")
    errors.axhline(0, color=GREY, linewidth=1, linestyle="--")
    errors.set(xscale="log", xticks=widths, xticklabels=widths, xlabel="units in each hidden layer", ylim=(-5, 95))
    errors.minorticks_off()
    errors.set_ylabel("rise of the error (percentage points)")
    errors.set_title("Training error without half of the units", fontsize=11, loc="left")
    for axes in (losses, errors):
        axes.spines[["top", "right"]].set_visible(False)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train the networks, draw the rise over the width, and compare the widest with the narrowest."""
    widths, steps = ([16, 256], 200) if fast else ([32, 128, 512], 400)
    measured = [trained(width, steps).history[-1] for width in widths]
    out.mkdir(parents=True, exist_ok=True)
    picture(widths, measured).savefig(out / "half_a_network.png")
    narrow, wide = measured[0]["dropout/rise"], measured[-1]["dropout/rise"]
    print(
        f"rise of the loss without half of the units: {narrow:.3f} at width {widths[0]}, {wide:.3f} at width "
        f"{widths[-1]}: {narrow / wide:.1f} times less"
    )
    assert 0 < wide < narrow / 5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="smaller networks and fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
