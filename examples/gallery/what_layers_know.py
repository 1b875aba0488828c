"""Training turns what layers know around: accuracy over depth falls at initialisation, and rises at the end.

A linear classifier that is fitted on the features of a layer reads the label off samples that it has not seen (Alain
and Bengio 2016, arXiv:1610.01644). Random layers lose what the signal shows of the label; trained layers bring it out,
step by step. A convolutional network and an MLP are trained on MNIST-1D, and `LinearProbes` reads the label off each
activation on held-out signals at the first step and at the last one.

python examples/gallery/what_layers_know.py --out pictures     # about two minutes of one CPU core
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from mnist1d.data import get_templates
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, Curve, EveryNSteps, LinearProbes
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION

LAYERS = {
    "convolutions": ["layers.2", "layers.4", "layers.6", "layers.8"],
    "MLP": ["layers.1", "layers.3", "layers.5", "layers.7"],
}


def resampling(old: int, new: int) -> np.ndarray:
    """The matrix of linear interpolation from one number of evenly spaced points to another."""
    places = np.linspace(0, old - 1, new)
    below = np.minimum(places.astype(int), old - 2)
    matrix = np.zeros((new, old))
    matrix[np.arange(new), below] = 1 - (places - below)
    matrix[np.arange(new), below + 1] = places - below
    return matrix


def blurring(points: int, width: float) -> np.ndarray:
    """The matrix of a Gaussian blur that reflects at the ends."""
    reach = int(4 * width + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    padded = np.pad(np.eye(points), ((0, 0), (reach, reach)), mode="symmetric")
    return np.stack([np.convolve(row, weights / weights.sum(), mode="valid") for row in padded])


def signals(samples: int, seed: int) -> TensorDataset:
    """Signals with the distribution of MNIST-1D, by matrix products, so that thousands of them take milliseconds.

    A digit's template is padded, stretched, scaled, shifted and sheared, with correlated noise around it.
    """
    draws = torch.Generator().manual_seed(seed)
    templates = get_templates()["x"]
    stretched = [resampling(48 + pad, 72) @ np.pad(templates, ((0, 0), (0, 36 + pad))).T for pad in range(25)]
    shapes = torch.tensor(np.stack(stretched)).float().mT  # (paddings, digits, 72)
    digits = torch.randint(10, (samples,), generator=draws)
    shape = shapes[torch.randint(25, (samples,), generator=draws), digits]
    shift = torch.randint(48, (samples,), generator=draws)
    shape = shape.gather(1, (torch.arange(72) - shift[:, None]) % 72)
    scale, shear = (size * (torch.rand(samples, 1, generator=draws) - 0.5) for size in (0.4, 0.75))
    noise = 0.25 * torch.randn(samples, 72, generator=draws) @ torch.tensor(blurring(72, 2.0)).float()
    signal = torch.where(shape != 0, (1 + scale) * shape, noise) + 0.02 * torch.randn(samples, 72, generator=draws)
    signal = (signal - shear * torch.linspace(-0.5, 0.5, 72)) @ torch.tensor(resampling(72, 40)).float().T
    return TensorDataset((signal - signal.mean()) / signal.std(), digits)


def convolutions(width: int = 32) -> nn.Sequential:
    sizes = [(1, 5, 2, 2), (width, 3, 2, 1), (width, 3, 2, 1), (width, 3, 1, 1)]
    hidden = [part for size, *rest in sizes for part in (nn.Conv1d(size, width, *rest), nn.ReLU())]
    return nn.Sequential(nn.Unflatten(1, (1, 40)), *hidden, nn.Flatten(), nn.Linear(5 * width, 10))


def mlp(width: int = 128) -> nn.Sequential:
    hidden = [part for sizes in pairwise([40] + 4 * [width]) for part in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


class Classifier(LightningModule):
    """Some layers, cross-entropy, and Adam."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, signal: Tensor) -> Tensor:
        return self.layers(signal)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def measured(name: str, steps: int, samples: int) -> tuple[LinearProbes, Curve, Curve]:
    """Train with seed 0, in batches of 128. The curves over depth before and after training."""
    seed_everything(0, verbose=False)
    module = Classifier(convolutions() if name == "convolutions" else mlp())
    probe = LinearProbes(layers=LAYERS[name], num_samples=samples, schedule=(EveryNSteps(1, stop=0), AtFitEnd()))
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(module, DataLoader(signals(4000, 0), 128, shuffle=True), DataLoader(signals(4000, 1), 500))
    (_, before), *_, (_, after) = probe.progress.log.record.trail["linear/depth"]
    return probe, before, after


def picture(found: dict[str, tuple[LinearProbes, Curve, Curve]]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    for axes, (name, (probe, before, after)) in zip(canvas.subplots(1, 2, sharey=True), found.items(), strict=True):
        places = range(1, len(before.y) + 1)
        for curve, label, colour in ((before, "at initialisation", VERMILLION), (after, "after training", BLUE)):
            axes.errorbar(places, curve.y, 2 * curve.standard_error, color=colour, marker="o", label=label)
        end = probe.history[-1]
        axes.axhline(end["linear/head"], color=BLUE, linewidth=1, linestyle=":", label="the network's own output")
        axes.axhline(end["linear/null_p95"], color=GREY, linewidth=1, linestyle="--", label="permuted labels")
        axes.set(xticks=places, xlabel="hidden layer", ylim=(0, 1))
        axes.set_title(name, fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    canvas.axes[0].set_ylabel("accuracy of a linear classifier")
    canvas.axes[0].legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.12))
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train both networks, draw accuracy over depth, and compare the last hidden layer with the first."""
    steps, samples = (500, 1000) if fast else (1500, 2048)
    found = {name: measured(name, steps, samples) for name in LAYERS}
    out.mkdir(parents=True, exist_ok=True)
    picture(found).savefig(out / "what_layers_know.png")
    rises = {name: (before.y[-1] - before.y[0], after.y[-1] - after.y[0]) for name, (_, before, after) in found.items()}
    print(
        "accuracy on the last hidden layer minus that on the first: "
        + ", ".join(
            f"{name} {start:+.3f} at initialisation and {end:+.3f} after training"
            for name, (start, end) in rises.items()
        )
    )
    assert all(start < -0.02 and end > 0.02 for start, end in rises.values())
    if not fast:
        assert all((np.diff(after.y) > 0).all() for _, _, after in found.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer steps and samples")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
