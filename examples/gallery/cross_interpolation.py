"""The loss falls from any initialisation to any optimum, even where optima have a barrier between them.

From the initialisation of a run to its end the loss falls along the straight line. It also falls from the
initialisation of *another* run to this end, although that run has ended elsewhere, and between the two ends there is a
barrier (Lucas et al. 2021, arXiv:2104.11044, figure 1). An MLP is trained on small digits from two seeds, and at the
end of the fit `InitInterpolation` and `ModeConnectivity` measure these lines.

python examples/gallery/cross_interpolation.py --out pictures     # about a quarter of a minute of one CPU core
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

from lightning_probes import AtFitEnd, InitInterpolation, ModeConnectivity
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION


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


def lines(width: int, steps: int, seeds: tuple[int, int]) -> tuple[InitInterpolation, ModeConnectivity]:
    """Train two networks, and measure from both initialisations and between the ends."""
    other_init = initial(width, steps, seeds[1])
    other = trained(width, steps, seeds[1])
    own = InitInterpolation(data="train", num_samples=1300, schedule=AtFitEnd())
    across = ModeConnectivity(
        other, cross=True, other_init=other_init, num_alphas=25, data="train", num_samples=1300, schedule=AtFitEnd()
    )
    trained(width, steps, seeds[0], own, across)
    return own, across


def rises(own: InitInterpolation, across: ModeConnectivity) -> tuple[float, float, float, float]:
    """Largest rise of the loss: on the line to the own end, on both lines to the other's, and between the ends."""
    last = own.history[-1] | across.history[-1]
    keys = (
        "interpolation/max_rise", "connectivity/init_to_other/max_rise", "connectivity/other_init_to_run/max_rise",
        "connectivity/rise_above_ends",
    )  # fmt: skip
    first, second, third, between = (last[key] for key in keys)
    return first, second, third, between


def picture(own: InitInterpolation, across: ModeConnectivity) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    falls, barrier = canvas.subplots(1, 2, sharey=True)
    curve = own.results["interpolation/loss"]
    falls.plot(curve.x, curve.y, color=GREY, label="this run's initialisation to its end")
    for key, style, label in (
        ("init_to_other", "-", "this run's initialisation to the other's end"),
        ("other_init_to_run", "--", "the other's initialisation to this run's end"),
    ):
        curve = across.results[f"connectivity/{key}/loss"]
        falls.plot(curve.x, curve.y, color=BLUE, linestyle=style, label=label)
    falls.set(
        xlabel="α (0: initialisation, 1: end of a run)", ylabel="training loss (nats per sample)", ylim=(None, 3.2)
    )
    falls.set_title("From either initialisation the loss falls", fontsize=11, loc="left")
    curve = across.results["connectivity/loss"]
    barrier.plot(curve.x, curve.y, color=VERMILLION, label="this run's end to the other's")
    barrier.plot(curve.x[[0, -1]], curve.y[[0, -1]], color=GREY, linewidth=1, linestyle="--", label="chord")
    barrier.set(xlabel="α (0: this run's end, 1: the other's)")
    barrier.set_title("Between the ends it rises", fontsize=11, loc="left")
    for axes in (falls, barrier):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train two networks, draw the loss on the four lines, and compare how far it rises."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    found = lines(*((64, 150) if fast else (128, 300)), (0, 1))
    out.mkdir(parents=True, exist_ok=True)
    picture(*found).savefig(out / "cross_interpolation.png")
    *from_init, between = rises(*found)
    print(
        f"largest rise of the loss on three lines from an initialisation to an end: {max(from_init):.4f}; from one end "
        f"to the other: {between:.4f}"
    )
    assert max(from_init) < between / 20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="smaller networks and fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
