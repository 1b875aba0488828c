"""Gradient decades at initialisation tell which of twelve networks will train.

A network trains if gradients reach its first layers at about the size that they have at its last ones (Schoenholz et
al. 2017, arXiv:1611.01232). `GradientFlow` measures the norm of the gradient over depth before the first step: in how
many decades it changes on the way back. Twelve networks of ReLUs, of depth 8 and 24, with several gains of the
initialisation, with and without skip connections, are then trained by SGD on ten classes of Gaussian clusters.

python examples/gallery/gradient_decades.py --out pictures     # about a minute of one CPU core
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps, GradientFlow
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION

WIDTH = 48


class Kind(NamedTuple):
    """A network: its depth, the gain of its weights, and the scale of its branches if it has skip connections."""

    depth: int
    gain: float
    scale: float | None = None

    @property
    def label(self) -> str:
        kind = f"gain {self.gain:.2g}" if self.scale is None else f"skip, branch × {self.scale:.2g}"
        return f"{self.depth} layers, {kind}"


class Classifier(LightningModule):
    """Layers of ReLUs without normalisation, cross-entropy, and SGD with momentum."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.scale = kind.scale
        self.layers = nn.ModuleList(nn.Linear(64 if k == 0 else WIDTH, WIDTH) for k in range(1 + kind.depth))
        self.head = nn.Linear(WIDTH, 10)
        for number, layer in enumerate([*self.layers, self.head]):
            gain = math.sqrt(2) if number == 0 else 1.0 if layer is self.head else kind.gain
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, signal: Tensor) -> Tensor:
        z = self.layers[0](signal).relu()
        for layer in self.layers[1:]:
            f = layer(z).relu()
            z = f if self.scale is None else z + self.scale * f
        return self.head(z)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def clusters(samples: int = 1000) -> TensorDataset:
    """Ten classes of three Gaussian clusters each, in 64 dimensions."""
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 3, 64, generator=draws)
    classes = torch.arange(10).repeat(samples // 10)
    points = centres[classes, torch.randint(3, (samples,), generator=draws)]
    points = points + torch.randn(samples, 64, generator=draws)
    return TensorDataset(points / points.std(), classes)


class Trained(NamedTuple):
    """What a network is, its gradient decades before training, the curve over depth, and its accuracy after it."""

    kind: Kind
    decades: float
    norms: list[float]
    accuracy: float


def trained(kind: Kind, steps: int) -> Trained:
    """Measure before the first step, then train with seed 0, in batches of 64."""
    seed_everything(0, verbose=False)
    data, model, probe = clusters(), Classifier(kind), GradientFlow(schedule=EveryNSteps(1, stop=0))
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, 64, shuffle=True))
    with torch.no_grad():
        right = model(data.tensors[0]).argmax(1) == data.tensors[1]
    norms = probe.results["gradient_flow/norm"].y.tolist()
    return Trained(kind, probe.history[0]["gradient_flow/decades"], norms, float(right.double().mean()))


def trains_well(network: Trained) -> bool:
    """Whether the decades are within the default thresholds."""
    return -3.0 <= network.decades <= 1.5


def picture(networks: list[Trained]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    depths, accuracies = canvas.subplots(1, 2)
    for network in (each for each in networks if each.kind.depth == 24):
        colour = BLUE if trains_well(network) else VERMILLION
        depths.plot(network.norms, color=colour)
        label = network.kind.label.partition(", ")[2]
        below = -24 if network.kind.scale == 1 else -10 if network.decades < -3 else 6
        depths.annotate(label, (0, network.norms[0]), (6, below), textcoords="offset points", fontsize=7, color=colour)
    depths.set(yscale="log", xlabel="depth (places, from the input)", ylabel="norm of the gradient")
    depths.set_title("24 layers, before the first step", fontsize=11, loc="left")
    for network in networks:
        colour, marker = BLUE if trains_well(network) else VERMILLION, "o" if network.kind.depth == 8 else "s"
        accuracies.plot(network.decades, 100 * network.accuracy, marker, color=colour)
    for threshold in (-3.0, 1.5):
        accuracies.axvline(threshold, color=GREY, linewidth=1, linestyle="--")
    accuracies.axhline(10, color=GREY, linewidth=1)
    accuracies.set(xlabel="decades before the first step", ylabel="training accuracy after SGD (%)", ylim=(0, 105))
    accuracies.set_title("circles: 8 layers, squares: 24 layers; grey: chance", fontsize=11, loc="left")
    for axes in (depths, accuracies):
        axes.spines[["top", "right"]].set_visible(False)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Measure and train the networks, and compare those within the thresholds with the others."""
    steps, depths = (150, [24]) if fast else (200, [8, 24])
    kinds = [Kind(depth, gain) for depth in depths for gain in (0.7, 1.0, math.sqrt(2), 2.4)]
    kinds += [Kind(depth, math.sqrt(2), scale) for depth in depths for scale in (1.0, 1 / math.sqrt(depth))]
    networks = [trained(kind, steps) for kind in kinds]
    out.mkdir(parents=True, exist_ok=True)
    picture(networks).savefig(out / "gradient_decades.png")
    within, beyond = ([each.accuracy for each in networks if trains_well(each) == well] for well in (True, False))
    means = [sum(each) / len(each) for each in (within, beyond)]
    print(
        f"training accuracy {means[0]:.2f} for {len(within)} networks within the thresholds of the gradient decades, "
        f"{means[1]:.2f} for {len(beyond)} beyond them"
    )
    assert means[0] > means[1] + 0.3
    assert max(beyond) < 0.15


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer networks and fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
