"""Intermediate layers hold what the last one has thrown away.

A network that is trained on digits and averages over positions no longer knows in its last layer where a digit was. A
linear head on selected features of all layers (Head2Toe, Evci et al. 2022, arXiv:2201.03529) still reads it off. So it
gains much on a far target, the position, and nothing on a near one, the digit itself. Beside it: a linear head on the
last hidden layer, all features, fine-tuning, and training from scratch, each with 320 signals; one table in W&B.

python examples/gallery/far_and_near_targets.py --out pictures     # half a minute of one CPU core
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
import wandb
from matplotlib.figure import Figure
from mnist1d.data import get_templates
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from lightning_probes import Head2ToeNetwork, head2toe
from lightning_probes.reporting.panels.style import BLUE, VERMILLION

LAYERS = {"2": "conv 1", "4": "conv 2", "6": "conv 3", "8": "conv 4", "11": "logits"}
METHODS = ["linear", "Head2Toe", "all features", "fine-tuned", "from scratch"]
TARGETS = ["position (far)", "digit (near)"]


def signals(samples: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Signals like those of MNIST-1D, their digits, and the positions of these in eight bins."""
    draws = torch.Generator().manual_seed(seed)
    templates = torch.tensor(np.array(get_templates()["x"])).float()
    digits, shift = (torch.randint(most, (samples,), generator=draws) for most in (10, 48))
    pad = torch.randint(25, (samples,), generator=draws)
    # A template of 12 points, padded to 48 to 72 points, is stretched to 72.
    places = torch.arange(72) * (47 + pad)[:, None] / 71
    below = places.floor().long().clamp(max=10)
    between = places - below
    shape = torch.lerp(templates[digits].gather(1, below), templates[digits].gather(1, below + 1), between)
    inside = places < 11
    turned = (torch.arange(72) - shift[:, None]) % 72
    shape, inside = shape.gather(1, turned), inside.gather(1, turned)
    scale, shear = (size * (torch.rand(samples, 1, generator=draws) - 0.5) for size in (0.4, 0.75))
    window = torch.exp(-0.5 * (torch.arange(-8, 9) / 2.0) ** 2)
    noise = torch.randn(samples, 1, 88, generator=draws)
    noise = 0.25 * nn.functional.conv1d(noise, (window / window.sum())[None, None])[:, 0]
    signal = torch.where(inside, (1 + scale) * shape, noise) - shear * torch.linspace(-0.5, 0.5, 72)
    signal = nn.functional.interpolate(signal[:, None], 40, mode="linear", align_corners=True)[:, 0]
    signal = signal + 0.02 * torch.randn(samples, 40, generator=draws)
    return (signal - signal.mean()) / signal.std(), {TARGETS[0]: shift // 6, TARGETS[1]: digits}


def network(classes: int) -> nn.Sequential:
    """Four convolutions and an average over positions."""
    sizes = [(1, 5, 2, 2), (24, 3, 2, 1), (24, 3, 2, 1), (24, 3, 1, 1)]
    hidden = [part for size, *rest in sizes for part in (nn.Conv1d(size, 24, *rest), nn.ReLU())]
    pooled = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, classes)]
    return nn.Sequential(nn.Unflatten(1, (1, 40)), *hidden, *pooled)


def trained(module: nn.Sequential, x: Tensor, y: Tensor, steps: int) -> nn.Sequential:
    """Adam with a learning rate that falls to zero, in batches of 64."""
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=draws)
        optimizer.zero_grad()
        cross_entropy(module(x[batch]), y[batch]).backward()
        optimizer.step()
        falling.step()
    return module.eval()


def transferred(backbone: nn.Sequential, target: str, steps: int) -> tuple[list[float], Head2ToeNetwork]:
    """Test accuracy of each method on 320 training signals and 80 to choose with, and the Head2Toe network."""
    (x, y), (test_x, test_y) = ((x, labels[target]) for x, labels in (signals(400, 1), signals(2000, 2)))
    classes = int(y.max()) + 1
    parts = TensorDataset(x[:320], y[:320]), TensorDataset(x[320:], y[320:])
    every_layer = {"layers": [*LAYERS], "max_features": 96}
    found = head2toe(backbone, *parts, **every_layer)
    heads = [
        head2toe(backbone, *parts, layers=["9"], fraction=1.0),
        found,
        head2toe(backbone, *parts, fraction=1.0, **every_layer),
    ]
    torch.manual_seed(1)
    scratch, tuned = network(classes), copy.deepcopy(backbone).train()
    tuned[-1] = nn.Linear(24, classes)
    heads += [trained(module, *(part[:320] for part in (x, y)), steps) for module in (tuned, scratch)]
    with torch.no_grad():
        return [float((head(test_x).argmax(1) == test_y).float().mean()) for head in heads], found


def picture(accuracies: dict[str, list[float]], relevance: dict[str, list[float]]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(1.15, 1))
    panels = ((left, accuracies, METHODS), (right, relevance, [*LAYERS.values()]))
    for axes, values, names in panels:
        for place, (target, colour) in enumerate(zip(TARGETS, (VERMILLION, BLUE), strict=True)):
            axes.bar(np.arange(len(names)) + 0.38 * place - 0.19, values[target], 0.36, color=colour, label=target)
        axes.set_xticks(range(len(names)), names, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    left.set(ylim=(0, 1.05), ylabel="test accuracy")
    left.set_title("A network trained on digits, for two targets", fontsize=11, loc="left")
    left.legend(frameon=False, fontsize=9, ncols=2, loc="upper left")
    right.set_ylabel("share of relevance")
    right.set_title("What Head2Toe uses of each layer", fontsize=11, loc="left")
    return canvas


def logged(accuracies: dict[str, list[float]], folder: Path) -> None:
    """One table in an offline run of W&B, a row for each target. `wandb sync` sends it."""
    affinity = {target: row[0] - row[-1] for target, row in accuracies.items()}
    rows = [[target, *row, affinity[target]] for target, row in accuracies.items()]
    with wandb.init(project="far-and-near-targets", mode="offline", dir=folder) as run:
        run.log({"transfer": wandb.Table(columns=["target", *METHODS, "affinity"], data=rows)})


def main(out: Path, fast: bool = False) -> None:
    """Train on digits, transfer to both targets, draw, and compare the gains of Head2Toe over a linear head."""
    torch.manual_seed(0)
    x, labels = signals(4000 if fast else 20000, 0)
    backbone = trained(network(10), x, labels[TARGETS[1]], 300 if fast else 1000)
    accuracies, relevance = {}, {}
    for target in TARGETS:
        accuracies[target], found = transferred(backbone, target, 50 if fast else 400)
        relevance[target] = [*found.relevance.values()]
    out.mkdir(parents=True, exist_ok=True)
    picture(accuracies, relevance).savefig(out / "far_and_near_targets.png")
    logged(accuracies, out.parent)
    far, near = (accuracies[target][1] - accuracies[target][0] for target in TARGETS)
    print(f"accuracy gained by Head2Toe over a linear head: {far:+.3f} for the position, {near:+.3f} for the digit")
    assert far > 0.2
    assert near < 0.1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer signals and steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
