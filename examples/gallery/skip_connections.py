"""Without skip connections the loss of a deep network bends down on much more of a plane through its weights.

Li et al. 2018 (arXiv:1712.09913) drew the loss of deep networks with and without skip connections on planes of random
directions. Two networks of six blocks are trained on images of ten classes, with and without the inputs of the blocks
added to their outputs, until both have fitted the samples. `nonconvexity` of `LossPlane` compares the two on planes of
the same kind.

python examples/gallery/skip_connections.py --out pictures     # about two minutes of one CPU core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, LossPlane
from lightning_probes.functional.paths.curvature_of_plane import principal_curvatures
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION
from lightning_probes.results import Surface

CHANNELS, BLOCKS = 8, 6
LINES = {"colors": GREY, "linewidths": 0.5, "linestyles": "solid"}


class Block(nn.Module):
    """Two convolutions, with the block's input added to what they give, or without."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        changed = self.layers(image)
        return relu(changed + image if self.skip else changed)


class Classifier(LightningModule):
    """A convolution, the blocks, and a linear layer; SGD with a learning rate that falls to zero."""

    def __init__(self, skip: bool, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
            *(Block(skip) for _ in range(BLOCKS)), nn.Flatten(), nn.Linear(CHANNELS * 4 * 4, 10),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def images() -> TensorDataset:
    """Handwritten digits of 8 x 8 pixels."""
    digits = load_digits()
    shown = torch.as_tensor(digits.images).float()[:, None]
    return TensorDataset((shown - shown.mean()) / shown.std(), torch.as_tensor(digits.target))


def planes(skip: bool, seed: int, steps: int, resolution: int) -> list[LossPlane]:
    """Two planes through the weights after training."""
    seed_everything(seed, verbose=False)
    probes = [
        LossPlane(name=f"plane{k}", seed=2 * seed + k, resolution=resolution, schedule=AtFitEnd()) for k in range(2)
    ]
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[*probes], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(skip, steps), DataLoader(images(), 64, shuffle=True))
    return probes


def mean(probes: list[LossPlane], key: str = "nonconvexity") -> float:
    return sum(float(probe.history[-1][f"{probe.name}/{key}"]) for probe in probes) / len(probes)


def bends(axes: Axes, probe: LossPlane) -> AxesImage:
    """Where the surface bends down: its negative curvature over the largest in magnitude, below lines of the loss."""
    surface = probe.results[f"{probe.name}/loss"]
    assert isinstance(surface, Surface)
    step = float(surface.x[1] - surface.x[0])
    low, high = principal_curvatures(torch.as_tensor(surface.values), step, step)
    share = -low.clamp(max=0) / torch.maximum(low.abs(), high.abs())
    inner = 1 - step / 2
    image = axes.imshow(share.numpy(), "Reds", vmin=0, vmax=1, origin="lower", extent=(-inner, inner, -inner, inner))
    axes.contour(surface.x, surface.y, surface.values, [0.01 * 10 ** (k / 4) for k in range(17)], **LINES)
    axes.set(xlabel="first direction (filter norms)", aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    return image


def picture(found: dict[str, list[list[LossPlane]]]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    left, middle, right = canvas.subplots(1, 3, width_ratios=[1, 1, 0.9])
    for axes, colour, (name, runs) in zip((left, middle), (BLUE, VERMILLION), found.items(), strict=True):
        image = bends(axes, runs[0][0])
        axes.set_title(f"{name}: {mean(runs[0][:1]):.3f}", fontsize=11, loc="left", color=colour)
        right.plot(range(len(runs)), [mean(run) for run in runs], "o", color=colour, label=name)
    left.set_ylabel("second direction (filter norms)")
    label = "share of curvature that is negative"
    canvas.colorbar(image, ax=[left, middle], location="bottom", shrink=0.6, aspect=40, label=label)
    right.set(xticks=range(len(runs)), xlim=(-0.5, len(runs) - 0.5), xlabel="seed")
    right.set_ylim(bottom=-0.01)
    right.set_ylabel("nonconvexity (share)")
    right.set_title("Mean of two planes", fontsize=11, loc="left")
    right.legend(frameon=False, fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train the networks, draw a plane of each, and compare the means over seeds and planes."""
    seeds, steps, resolution = (1, 400, 11) if fast else (3, 600, 21)
    found = {
        name: [planes(skip, seed, steps, resolution) for seed in range(seeds)]
        for name, skip in {"With skip connections": True, "Without": False}.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    picture(found).savefig(out / "skip_connections.png")
    bent, plain = (sum(map(mean, runs)) / seeds for runs in found.values())
    print(f"nonconvexity on random planes: {bent:.4f} with skip connections, {plain:.4f} without")
    assert plain > 4 * bent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="one seed, fewer steps and points")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
