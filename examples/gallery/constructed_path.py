"""Two wide networks are joined by a path of low loss that is built, not searched.

If a network keeps its loss without half of its units, these units are free: they may take over the weights of another
network while nothing reads them, and then the last layer turns from one half to the other (Kuditipudi et al. 2019,
arXiv:1906.06247, theorem 1). On each of the 4h + 1 segments for h hidden layers either units that nothing reads move,
which leaves the loss as it is, or the last layer, in which the loss is convex. So the loss on the path nowhere exceeds
that of the ends, or of the ends with some layers halved. Two networks are trained on ten classes of
Gaussian clusters from different seeds.

python examples/gallery/constructed_path.py --out pictures     # about a minute of one CPU core
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION

Layers = list[tuple[Tensor, Tensor]]  # weight and bias of each layer
Units = list[Tensor]  # numbers of units in each hidden layer


def clusters(samples: int = 1300) -> tuple[Tensor, Tensor]:
    """Ten classes of three Gaussian clusters each, in 64 dimensions."""
    draws = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 3, 64, generator=draws)
    classes = torch.arange(10).repeat(samples // 10)
    points = centres[classes, torch.randint(3, (samples,), generator=draws)]
    points = points + torch.randn(samples, 64, generator=draws)
    return points / points.std(), classes


def trained(seed: int, sizes: Sequence[int], steps: int, inputs: Tensor, targets: Tensor) -> Layers:
    """A ReLU network after SGD with a learning rate that falls to zero."""
    torch.manual_seed(seed)
    linear = [nn.Linear(*pair) for pair in pairwise(sizes)]
    net = nn.Sequential(*(part for layer in linear for part in (layer, nn.ReLU())))[:-1]
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (128,))
        sgd.zero_grad()
        cross_entropy(net(inputs[batch]), targets[batch]).backward()
        sgd.step()
        falling.step()
    return [(layer.weight.detach(), layer.bias.detach()) for layer in linear]


def loss(layers: Layers, inputs: Tensor, targets: Tensor) -> float:
    *hidden, (weight, bias) = layers
    for matrix, shift in hidden:
        inputs = torch.relu(inputs @ matrix.T + shift)
    return float(cross_entropy(inputs @ weight.T + bias, targets))


def suffixes(layers: Layers, kept: Units) -> list[Layers]:
    """The network with the last hidden layer halved, with the last two, ... and with all of them."""
    found, current = [], list(layers)
    for depth in reversed(range(len(kept))):
        weight, bias = current[depth + 1]
        halved = torch.zeros_like(weight)
        halved[:, kept[depth]] = weight[:, kept[depth]] * (weight.shape[1] / len(kept[depth]))
        current[depth + 1] = halved, bias
        found.append(list(current))
    return found


def rewritten(
    layer: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor, by: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """A layer in which some units read nothing but some units of the layer before."""
    weight, bias = (tensor.clone() for tensor in layer)
    weight[rows] = 0
    weight[rows[:, None], columns], bias[rows] = by
    return weight, bias


def turned(point: Layers, columns: Tensor, last: tuple[Tensor, Tensor]) -> Layers:
    """The point with a last layer that reads these units alone."""
    weight = torch.zeros_like(point[-1][0])
    weight[:, columns] = last[0]
    return [*point[:-1], (weight, last[1])]


def to_its_half(layers: Layers, kept: Units, others: Units) -> tuple[list[Layers], Units]:
    """Corners of the path from a network to one that uses half of its units, and these units."""
    small = [layers[0]]
    for depth, units in enumerate(kept):
        weight, bias = layers[depth + 1]
        small.append((weight[:, units] * (weight.shape[1] / len(units)), bias))
    small = [
        (weight[kept[depth]], bias[kept[depth]]) if depth < len(kept) else (weight, bias)
        for depth, (weight, bias) in enumerate(small)
    ]
    used, free = list(kept), list(others)
    corners = [layers, turned(layers, used[-1], small[-1])]
    for halved in reversed(range(len(kept) - 1)):
        point = list(corners[-1])
        for depth in range(halved + 1, len(kept)):  # a copy of the layers behind, which reads half of this one
            source = used[halved] if depth == halved + 1 else free[depth - 1]
            point[depth] = rewritten(point[depth], free[depth], source, small[depth])
        corners += [point, turned(point, free[-1], small[-1])]
        used[halved + 1 :], free[halved + 1 :] = free[halved + 1 :], used[halved + 1 :]
    return corners, used


def path(here: Layers, there: Layers, kept: Units, others: Units) -> list[Layers]:
    """Corners of the path between two networks, the second of which keeps the units that the first one drops."""
    first, _ = to_its_half(here, kept, others)
    second, its = to_its_half(there, others, kept)
    point, end = list(first[-1]), second[-1]
    for depth, rows in enumerate(its):
        columns = its[depth - 1] if depth else torch.arange(end[0][0].shape[1])
        weight, bias = end[depth]
        point[depth] = rewritten(point[depth], rows, columns, (weight[rows][:, columns], bias[rows]))
    weight, bias = end[-1]
    return [*first, point, turned(point, its[-1], (weight[:, its[-1]], bias)), *reversed(second)]


def between(here: Layers, there: Layers, alpha: float) -> Layers:
    return [(torch.lerp(a, b, alpha), torch.lerp(c, d, alpha)) for (a, c), (b, d) in zip(here, there, strict=True)]


def best_halves(here: Layers, there: Layers, data: tuple[Tensor, Tensor], tries: int = 8) -> tuple[float, Units, Units]:
    """Of some random halves, those with the lowest bound: the largest loss of an end, whole or with layers halved."""
    found = []
    for _ in range(tries):
        halves = [torch.randperm(len(bias)).chunk(2) for _, bias in here[:-1]]
        kept, others = ([half[side] for half in halves] for side in (0, 1))
        networks = [here, there, *suffixes(here, kept), *suffixes(there, others)]
        found.append((max(loss(network, *data) for network in networks), kept, others))
    return min(found, key=lambda each: each[0])


def picture(chord: list[float], along: list[list[float]], bound: float) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    axes = canvas.subplots()
    points = len(along[0]) - 1
    for number, losses in enumerate(along):
        positions = [number + k / points for k in range(points + 1)]
        axes.plot(positions, losses, color=BLUE, label="the constructed path" if not number else None)
    positions = [len(along) * k / (len(chord) - 1) for k in range(len(chord))]
    axes.plot(positions, chord, color=VERMILLION, label="the straight line")
    axes.axhline(bound, color=GREY, linewidth=1, linestyle="--")
    axes.text(0, bound, f"bound {bound:.3f}", color=GREY, fontsize=9, va="bottom")
    axes.set(xticks=range(len(along) + 1), xlabel="segment of the path", ylabel="training loss (nats per sample)")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Between two networks of two hidden layers", fontsize=11, loc="left")
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train two networks, walk along the path between them, and compare its largest loss with bound and chord."""
    width, steps, depth = (64, 100, 3) if fast else (512, 400, 2)
    data = clusters()
    here, there = (trained(seed, [64, *[width] * depth, 10], steps, *data) for seed in (0, 1))
    torch.manual_seed(0)
    bound, kept, others = best_halves(here, there, data)
    corners = path(here, there, kept, others)
    alphas = [k / 8 for k in range(9)]
    along = [[loss(between(*segment, alpha), *data) for alpha in alphas] for segment in pairwise(corners)]
    chord = [loss(between(here, there, k / 24), *data) for k in range(25)]
    out.mkdir(parents=True, exist_ok=True)
    picture(chord, along, bound).savefig(out / "constructed_path.png")
    highest = max(map(max, along))
    print(
        f"largest loss on the path of {len(along)} segments: {highest:.4f}; bound: {bound:.4f}; "
        f"largest loss on the straight line: {max(chord):.4f}"
    )
    assert len(along) == 4 * depth + 1
    assert abs(highest - bound) < 1e-5
    assert fast or highest < max(chord)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="smaller networks and fewer steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
