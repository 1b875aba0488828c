"""A healthy run beside a broken one for each probe: the pictures of the documentation, on MNIST-1D.

python examples/healthy_and_broken.py --out pictures          # about two minutes of one CPU core
python examples/healthy_and_broken.py --only sharpness --fast  # shorter runs, for a look

Each function of `PAGES` trains the same network twice from the same seed, with one thing wrong in the second run.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import (
    AtFitEnd,
    EveryNSteps,
    FisherTrace,
    InitInterpolation,
    LayerCKA,
    LogSpacedSteps,
    LossPlane,
    Probe,
    Sharpness,
)
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION, VIRIDIS, between
from lightning_probes.results import Surface

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Run:
    """A finished run: what was done, what the probe saw, and how good the network became."""

    title: str
    probe: Probe
    accuracy: float  # on the 1,000 test signals


class Classifier(LightningModule):
    """Some layers, cross-entropy, and whatever optimizer it is given."""

    def __init__(self, layers: nn.Module, make_optimizer: MakeOptimizer) -> None:
        super().__init__()
        self.layers = layers
        self.make_optimizer = make_optimizer

    def forward(self, signal: Tensor) -> Tensor:
        return self.layers(signal)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        signal, digit = batch
        return cross_entropy(self(signal), digit)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.layers)


class Shuffle(nn.Module):
    """An augmentation with a fault: it shuffles the signals of a batch, but not their labels."""

    def forward(self, signal: Tensor) -> Tensor:
        return signal[torch.randperm(len(signal))] if self.training else signal


def mlp(hidden_layers: int, width: int = 128) -> nn.Sequential:
    sizes = [40] + [width] * hidden_layers
    hidden = [m for pair in pairwise(sizes) for m in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def convolutions(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, width, 5, stride=2), nn.ReLU(), nn.Conv1d(width, width, 3, stride=2), nn.ReLU(),
        nn.Conv1d(width, width, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * width, 10),
    )  # fmt: skip


def sgd(lr: float, momentum: float = 0.0) -> MakeOptimizer:
    return lambda layers: torch.optim.SGD(layers.parameters(), lr=lr, momentum=momentum)


def adam(lr: float) -> MakeOptimizer:
    return lambda layers: torch.optim.Adam(layers.parameters(), lr=lr)


def train(
    title: str,
    make_layers: Callable[[], nn.Module],
    optimizer: MakeOptimizer,
    probe: Probe,
    steps: int,
    folder: Path | None = None,
) -> Run:
    """4,000 training signals of 40 points, batches of 128, seed 0; 30 checkpoints, if there is a folder for them."""
    data = make_dataset(get_dataset_args())
    inputs, test_inputs = torch.tensor(data["x"]).float(), torch.tensor(data["x_test"]).float()
    seed_everything(0, verbose=False)
    model = Classifier(make_layers(), optimizer)
    saves = [ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=steps // 30)] if folder else []
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe, *saves], accelerator="cpu", logger=False,
        default_root_dir=folder, enable_checkpointing=bool(saves), enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(inputs, torch.tensor(data["y"]).long()), 128, shuffle=True))
    with torch.no_grad():
        correct = model.eval()(test_inputs).argmax(1) == torch.tensor(data["y_test"])
    return Run(title, probe, correct.float().mean().item())


def fisher_trace(fast: bool) -> list[Run]:
    """Broken: a learning rate that is ten times too small."""
    return [
        train(f"{word}: SGD, learning rate {lr}", convolutions, sgd(lr), FisherTrace(at_loss=1.5), steps)
        for word, lr, steps in (("Healthy", 0.3, 200 if fast else 400), ("Broken", 0.03, 1000 if fast else 3000))
    ]


def init_interpolation(fast: bool) -> list[Run]:
    """Broken: a learning rate for SGD given to Adam."""
    steps = 400 if fast else 800
    schedule = [EveryNSteps(steps // 4, start=steps // 4), AtFitEnd()]
    return [
        train(
            f"{word}: Adam, learning rate {lr}", lambda: mlp(5), adam(lr),
            InitInterpolation(data="train", schedule=schedule), steps,
        )
        for word, lr in (("Healthy", 0.001), ("Broken", 0.03))
    ]  # fmt: skip


def layer_cka(fast: bool) -> list[Run]:
    """Broken: the first two layers are still frozen, as a fine-tuning script has left them."""

    def half_frozen() -> nn.Module:
        layers = mlp(5)
        layers[:4].requires_grad_(False)
        return layers

    return [
        train(
            title, make_layers, sgd(0.05, momentum=0.9),
            LayerCKA(layers=[f"layers.{k}" for k in range(0, 11, 2)], data="train", micro_batch_size=128),
            300 if fast else 1000,
        )
        for title, make_layers in (
            ("Healthy: all layers are trained", lambda: mlp(5)),
            ("Broken: requires_grad=False on the first two", half_frozen),
        )
    ]  # fmt: skip


def loss_plane(fast: bool) -> list[Run]:
    """Broken: each signal has the label of another one."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            train(
                title, make_layers, sgd(0.05, momentum=0.9),
                LossPlane(directions="trajectory", resolution=11 if fast else 21),
                300 if fast else 600, Path(folder, word),
            )
            for word, title, make_layers in (
                ("healthy", "Healthy", lambda: mlp(3)),
                ("broken", "Broken: labels of other signals", lambda: nn.Sequential(Shuffle(), mlp(3))),
            )
        ]  # fmt: skip


def sharpness(fast: bool) -> list[Run]:
    """Broken: a learning rate that is too large to train at all."""
    return [
        train(
            f"{word}: SGD, learning rate {lr}", lambda: mlp(3), sgd(lr),
            Sharpness(schedule=[LogSpacedSteps(8), AtFitEnd()]), 250 if fast else 600,
        )
        for word, lr in (("Healthy", 0.3), ("Broken", 4.0))
    ]  # fmt: skip


def values(run: Run, key: str) -> list[float]:
    return [entry.get(key, float("nan")) for entry in run.probe.history]


def draw_fisher_trace(axes: Axes, run: Run, colour: str) -> None:
    loss, trace, error = (values(run, f"fisher/{key}") for key in ("loss", "trace", "trace_se"))
    axes.errorbar(loss, trace, [2 * e for e in error], color=colour, marker="o", markersize=3.5, elinewidth=0.8)
    axes.axvline(1.5, color=GREY, linewidth=1, linestyle="--")
    top = run.probe.summary["fisher/trace_max_at_loss"]
    axes.text(1.53, 370, f"largest trace until\nthe loss is 1.5: {top:.0f}", color=GREY, fontsize=9, ha="right")
    axes.set(xlabel="loss (nats per sample); training goes to the right", xlim=(2.4, 0.7), ylim=(0, 420))
    axes.set_ylabel("trace ± 2 s.e. (nats² per squared weight)")


def draw_init_interpolation(axes: Axes, run: Run, colour: str) -> None:
    lines = run.probe.figure("interpolation/loss").data
    for k, line in enumerate(lines):
        shade = between(["#cccccc", colour], k / (len(lines) - 1))
        axes.plot(line.x, line.y, color=shade, linewidth=1.5, label=line.name)
    rise, error, plateau = (
        values(run, f"interpolation/{key}")[-1] for key in ("max_rise", "max_rise_se", "plateau_fraction")
    )
    note = f"max_rise {rise:.2f} ± {error:.2f} (s.e.)\nplateau_fraction {plateau:.2f}"
    axes.text(0.03, 0.04, note, color=GREY, fontsize=9, transform=axes.transAxes)
    axes.set_xlabel("α (0: the initialisation, 1: that step)")
    axes.set_ylabel("training loss (nats per sample)")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.72))


def draw_layer_cka(axes: Axes, run: Run, colour: str) -> None:
    [heatmap] = run.probe.figure("cka/to_init").data
    viridis = LinearSegmentedColormap.from_list("viridis", VIRIDIS)
    image = axes.imshow(heatmap.z, cmap=viridis, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for row, similarities in enumerate(heatmap.z):
        last = similarities[-1]
        axes.text(len(similarities), row, f"{last:.2f}", color=colour, fontsize=9, va="center")
    axes.set_xticks(range(0, len(heatmap.x), 2), heatmap.x[::2])
    axes.set_yticks(range(len(heatmap.y)), heatmap.y)
    axes.set_xlabel("step (beside the last one: its values)")
    axes.figure.colorbar(image, ax=axes, pad=0.14, label="CKA with itself at initialisation")


def draw_loss_plane(axes: Axes, run: Run, colour: str) -> None:
    surface = run.probe.results["plane/loss"]
    assert isinstance(surface, Surface)
    assert surface.path is not None
    viridis = LinearSegmentedColormap.from_list("viridis", VIRIDIS)
    drawn = axes.contourf(surface.x, surface.y, np.log10(surface.values), 24, cmap=viridis)
    ticks = np.linspace(*np.log10([surface.values.min(), surface.values.max()]), 5)
    bar = axes.figure.colorbar(drawn, ax=axes, label="loss (nats per sample)")
    bar.set_ticks(ticks, labels=[f"{10**tick:.4g}" for tick in ticks])
    axes.plot(*surface.path.T, color="white", marker="o", markersize=3.5, linewidth=1)
    for place, name in zip(surface.path[[0, -1]], (surface.path_labels[0], surface.path_labels[-1]), strict=True):
        axes.annotate(name, place, (0, 6), textcoords="offset points", color="white", fontsize=9, ha="center")
    explained, walk = (values(run, f"plane/explained_variance{end}")[-1] for end in ("", "_random_walk"))
    note = f"explained_variance {explained:.2f}\n…_random_walk {walk:.2f}"
    axes.text(0.03, 0.04, note, color="white", fontsize=9, transform=axes.transAxes)
    axes.set(xlabel=surface.x_label, ylabel=surface.y_label)


def draw_sharpness(axes: Axes, run: Run, colour: str) -> None:
    steps = [step + 1 for step in values(run, "step")]
    axes.plot(steps, values(run, "sharpness/stability_ratio"), color=colour, marker="o", markersize=3.5)
    unstable = [step for step, up in zip(steps, values(run, "sharpness/flag/unstable"), strict=True) if up]
    axes.plot(unstable, [70] * len(unstable), "v", color=VERMILLION, markersize=5)
    if unstable:
        axes.text(1.2 * unstable[-1], 70, "flag unstable is up", color=VERMILLION, fontsize=9, va="center")
    for height, label in ((1, "edge of stability"), (2, "instability_threshold")):
        axes.axhline(height, color=GREY, linewidth=1, linestyle="--")
        if not unstable:  # once is enough
            axes.text(1, height, label, color=GREY, fontsize=9, va="bottom")
    axes.set(xlabel="step + 1", xscale="log", yscale="log", ylim=(0.03, 120))
    axes.set_ylabel("stability_ratio (no unit)")


PAGES = {
    "fisher_trace": (fisher_trace, draw_fisher_trace),
    "init_interpolation": (init_interpolation, draw_init_interpolation),
    "layer_cka": (layer_cka, draw_layer_cka),
    "loss_plane": (loss_plane, draw_loss_plane),
    "sharpness": (sharpness, draw_sharpness),
}
OWN_SCALES = (draw_loss_plane,)  # each plane has directions of its own


def picture(runs: list[Run], draw: Callable[[Axes, Run, str], Any]) -> Figure:
    """Two panels, mostly on the same scale, which no window and no `pyplot` knows of."""
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    both = canvas.subplots(1, 2, sharey=draw not in OWN_SCALES)
    for axes, run, colour in zip(both, runs, (BLUE, VERMILLION), strict=True):
        draw(axes, run, colour)
        axes.set_title(run.title, fontsize=11, loc="left", color=colour)
        axes.spines[["top", "right"]].set_visible(False)
        if draw not in OWN_SCALES:
            axes.label_outer(remove_inner_ticks=True)
    return canvas


def main() -> None:
    """Train two networks a probe, print what was measured last, write one picture a probe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/probes"), help="folder for the pictures")
    parser.add_argument("--only", choices=PAGES, nargs="+", default=list(PAGES), help="of which probes")
    parser.add_argument("--fast", action="store_true", help="shorter runs")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # for tensors this small a second thread only waits for the first
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        runs_of, draw = PAGES[name]
        runs = runs_of(arguments.fast)
        for run in runs:
            last = {**run.probe.history[-1], **run.probe.summary}
            print(f"{run.title}\n  test accuracy {run.accuracy:.3f}")
            print(*(f"  {key} {value:.4g}" for key, value in last.items() if not key.endswith("seconds")), sep="\n")
        picture(runs, draw).savefig(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
