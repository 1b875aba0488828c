"""A path of low loss goes round the barrier between two networks.

On the straight line between two trained networks the loss rises high, but a curved path between the same ends stays low
(Draxler et al. 2018, arXiv:1803.00885; Garipov et al. 2018, arXiv:1802.10026). `ModeConnectivity(path="string")` lets a
chain of pivots sink into a valley at the end of the fit. What it finds is an upper bound: there may be a lower path. An
MLP is trained on small digits from two seeds.

python examples/gallery/path_round_a_barrier.py --out pictures     # about half a minute of one CPU core
"""

from __future__ import annotations

import argparse
import logging
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import ModeConnectivity
from lightning_probes.reporting.panels.style import BLUE, VERMILLION


def mlp(width: int) -> nn.Sequential:
    """Three hidden layers of a width."""
    hidden = [part for pair in pairwise([64, width, width, width]) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


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


def initial(width: int, steps: int, seed: int) -> Classifier:
    seed_everything(seed, verbose=False)
    return Classifier(mlp(width), 0.1, steps)


def trained(width: int, steps: int, seed: int, *callbacks: Callback) -> Classifier:
    """Train from a seed, in batches of 128."""
    model = initial(width, steps, seed)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[*callbacks], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(digits(), 128, shuffle=True))
    return model


def measured(width: int, steps: int, path_steps: int, seeds: tuple[int, int]) -> ModeConnectivity:
    """Train two networks, and look for a path between them at the end of the second training."""
    other = trained(width, steps, seeds[1])
    probe = ModeConnectivity(other, path="string", path_steps=path_steps, num_alphas=25, data="train", num_samples=1300)
    trained(width, steps, seeds[0], probe)
    return probe


def highest(probe: ModeConnectivity) -> tuple[float, float]:
    """The largest loss on the straight line, and on the path."""
    return float(probe.results["connectivity/loss"].y.max()), probe.history[-1]["connectivity/path/max_loss"]


def picture(probe: ModeConnectivity) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    last = probe.history[-1]
    for axes, key, scale, label in zip(
        canvas.subplots(1, 2),
        ("loss", "error"),
        (1, 100),
        ("training loss (nats per sample)", "training error (%)"),
        strict=True,
    ):
        straight, path = (probe.results[f"connectivity/{prefix}{key}"] for prefix in ("", "path/"))
        axes.plot(straight.x, scale * straight.y, color=VERMILLION, label="straight line")
        length = f"path, {last['connectivity/path/length_over_chord']:.2f} times as long"
        axes.plot(path.x, scale * path.y, color=BLUE, label=length)
        axes.set(xlabel="share of the length (0: one run, 1: the other)", ylabel=label)
        axes.set_ylim(top=1.3 * scale * straight.y.max())  # room for the legend
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    top, low = highest(probe)
    title = f"The path goes round the barrier: at most {low:.3f} (an upper bound) instead of {top:.2f}"
    canvas.suptitle(title, fontsize=11, x=0.01, ha="left")
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train two networks, draw line and path between them, and compare the largest losses."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    width, steps, path_steps = (64, 150, 200) if fast else (128, 300, 400)
    probe = measured(width, steps, path_steps, (0, 1))
    out.mkdir(parents=True, exist_ok=True)
    picture(probe).savefig(out / "path_round_a_barrier.png")
    top, low = highest(probe)
    print(
        f"largest loss on the straight line: {top:.3f}; on the path: {low:.3f}, an upper bound found in "
        f"{probe.history[-1]['connectivity/path/passes']:.1f} passes"
    )
    assert low < top / 4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="smaller networks and fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
