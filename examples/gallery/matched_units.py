"""Once units are matched, the barrier between two networks falls by ten times.

The units of a hidden layer have no order: permute them, and the network computes the same. Runs from two seeds find
similar units in different places, so that the straight line between them mixes units that do not belong together, and
the loss on it rises. With the units of one network in the order of the other's most of this barrier is gone (Entezari
et al. 2022, arXiv:2110.06296; Ainsworth et al. 2023, arXiv:2209.04836; Jordan et al. 2023, arXiv:2211.08403). An MLP
and a CNN with BatchNorm are trained on small digits from two seeds each, and `ModeConnectivity` measures between them.

python examples/gallery/matched_units.py --out pictures     # about half a minute of one CPU core
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, ModeConnectivity
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION


def mlp(width: int) -> nn.Sequential:
    """Three hidden layers of a width."""
    hidden = [part for pair in pairwise([64, width, width, width]) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def cnn(channels: int) -> nn.Sequential:
    """Two convolutions with BatchNorm, the second twice as wide, and one hidden layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * channels, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, 10),
    )  # fmt: skip


class Classifier(LightningModule):
    """Some layers, cross-entropy, and SGD with a learning rate that falls to zero."""

    def __init__(self, layers: nn.Module, lr: float, steps: int) -> None:
        super().__init__()
        self.layers, self.lr, self.steps = layers, lr, steps

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def digits(samples: int = 1300) -> TensorDataset:
    """Images of 8 x 8 pixels, flat, in random order."""
    pixels, classes = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:samples]
    images = pixels[order].float()
    return TensorDataset((images - images.mean()) / images.std(), classes[order])


def trained(make: Callable[[], nn.Module], lr: float, steps: int, seed: int, *probes: ModeConnectivity) -> nn.Module:
    """Train from a seed, in batches of 128."""
    seed_everything(seed, verbose=False)
    model = Classifier(make(), lr, steps)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[*probes], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(digits(), 128, shuffle=True))
    return model


def between(make: Callable[[], nn.Module], lr: float, steps: int, seeds: tuple[int, int]) -> ModeConnectivity:
    """Train two networks, and measure between them at the end of the second training."""
    other = trained(make, lr, steps, seeds[1])
    probe = ModeConnectivity(
        other, align="activations", num_alphas=21, data="train", num_samples=1300, schedule=AtFitEnd()
    )
    trained(make, lr, steps, seeds[0], probe)
    return probe


def picture(probes: Mapping[str, ModeConnectivity]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    for axes, (title, probe) in zip(canvas.subplots(1, len(probes), sharey=True), probes.items(), strict=True):
        for key, colour, label in (("loss", VERMILLION, "as trained"), ("aligned/loss", BLUE, "units matched")):
            curve = probe.results[f"connectivity/{key}"]
            axes.plot(curve.x, curve.y, color=colour, label=label)
        axes.plot(curve.x[[0, -1]], curve.y[[0, -1]], color=GREY, linewidth=1, linestyle="--", label="chord")
        axes.set(xlabel="α (0: one run, 1: the other)", ylabel="training loss (nats per sample)")
        axes.set_title(f"{title}: the barrier falls {times_less(probe):.0f} times", fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.label_outer(remove_inner_ticks=True)
        axes.legend(frameon=False, fontsize=9)
    return canvas


def barriers(probe: ModeConnectivity) -> tuple[float, float]:
    last = probe.history[-1]
    return last["connectivity/barrier"], last["connectivity/aligned/barrier"]


def times_less(probe: ModeConnectivity) -> float:
    before, after = barriers(probe)
    return before / after


def main(out: Path, fast: bool = False) -> None:
    """Train two MLPs and two CNNs, draw the loss between them, and compare the barriers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    width, channels, steps = (64, 8, 150) if fast else (128, 32, 300)
    probes = {
        f"MLP of width {width}": between(lambda: mlp(width), 0.1, steps, (0, 1)),
        f"CNN of {channels} channels": between(lambda: cnn(channels), 0.05, steps, (0, 1)),
    }
    out.mkdir(parents=True, exist_ok=True)
    picture(probes).savefig(out / "matched_units.png")
    found = {
        title: "barrier {:.3f} as trained, {:.3f} matched".format(*barriers(probe)) for title, probe in probes.items()
    }
    print("; ".join(f"{title}: {text}" for title, text in found.items()))
    assert all(times_less(probe) > (1.5 if fast else 10) for probe in probes.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="smaller networks and fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
