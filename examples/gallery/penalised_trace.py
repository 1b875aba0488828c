"""A penalty on the Fisher information makes up for part of a learning rate that is too small.

With a learning rate that is too small the trace of the Fisher information explodes, and the test accuracy is lower. A
penalty that keeps the trace low brings part of the accuracy back (Jastrzebski et al. 2021, arXiv:2012.14193). A
convolutional network is trained on 500 signals of MNIST-1D, a fifth of them with wrong labels, with five seeds: with a
learning rate of 0.01, with `FisherPenalty` beside it, and with a learning rate of 0.1.

python examples/gallery/penalised_trace.py --out pictures     # about two minutes of one CPU core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps, FisherPenalty, FisherTrace
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION

COEFFICIENT = 1.5e-3
EVERY = 25
# Learning rate, coefficient of the penalty, and colour.
RUNS = {
    "learning rate 0.01": (0.01, None, VERMILLION),
    f"0.01 with a penalty of {COEFFICIENT:g}": (0.01, COEFFICIENT, BLUE),
    "learning rate 0.1": (0.1, None, GREY),
}


class Classifier(LightningModule):
    """Four convolutions and a linear head, SGD with momentum, and the test accuracy every 25 steps."""

    def __init__(self, rate: float, test: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.rate, self.test = rate, test
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            nn.Conv1d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv1d(16, 16, 3, 2, 1), nn.ReLU(),
            nn.Conv1d(16, 16, 3, 2, 1), nn.ReLU(), nn.Conv1d(16, 16, 3, 1, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(80, 10),
        )  # fmt: skip
        for layer in self.layers:
            if isinstance(layer, nn.Conv1d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.accuracies: list[float] = []

    def forward(self, signal: Tensor) -> Tensor:
        return self.layers(signal)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.global_step % EVERY == 0:
            with torch.no_grad():
                self.accuracies.append(float((self(self.test[0]).argmax(-1) == self.test[1]).float().mean()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


def signals(seed: int, samples: int) -> tuple[TensorDataset, tuple[Tensor, Tensor]]:
    """Training signals of MNIST-1D, of which a fifth have a wrong label, and 1,000 others with right labels."""
    settings = get_dataset_args()
    settings.num_samples, settings.train_split, settings.seed = samples + 1000, samples / (samples + 1000), seed
    made = make_dataset(settings)
    x, other = (torch.tensor(np.array(made[key]), dtype=torch.float32) for key in ("x", "x_test"))
    y, right = (torch.tensor(np.array(made[key])) for key in ("y", "y_test"))
    draws = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(y), generator=draws) < 0.2
    y = torch.where(wrong, (y + torch.randint(1, 10, (len(y),), generator=draws)) % 10, y)
    return TensorDataset((x - x.mean()) / x.std(), y), ((other - x.mean()) / x.std(), right)


def trained(
    rate: float, coefficient: float | None, seed: int, samples: int, steps: int
) -> tuple[list[float], list[float]]:
    """Train in batches of 64. Returns the trace and the test accuracy every 25 steps."""
    train, test = signals(seed, samples)
    seed_everything(seed, verbose=False)
    probe, module = FisherTrace(schedule=EveryNSteps(EVERY), num_samples=128), Classifier(rate, test)
    penalty = [] if coefficient is None else [FisherPenalty(coefficient)]
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe, *penalty], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(train, 64, shuffle=True, drop_last=True))
    return [entry["fisher/trace"] for entry in probe.history], module.accuracies


def picture(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    traces, accuracies = canvas.subplots(1, 2)
    for (label, (trace, accuracy)), (_, _, colour) in zip(found.items(), RUNS.values(), strict=True):
        for axes, values in ((traces, trace), (accuracies, 100 * accuracy)):
            steps = EVERY * np.arange(values.shape[1])
            axes.plot(steps, values.mean(0), color=colour, label=label)
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    traces.set(xlabel="step", ylabel="fisher/trace (nats² per squared weight)")
    traces.set_title("Trace of the Fisher information", fontsize=11, loc="left")
    traces.legend(frameon=False, fontsize=9, title="mean and range of the seeds", title_fontsize=9)
    accuracies.set(xlabel="step", ylabel="test accuracy (%)")
    accuracies.set_title("Test accuracy", fontsize=11, loc="left")
    for axes in (traces, accuracies):
        axes.spines[["top", "right"]].set_visible(False)
    return canvas


def over_seeds(values: np.ndarray) -> float:
    """The mean over seeds of the largest value of a run."""
    return float(values.max(1).mean())


def main(out: Path, fast: bool = False) -> None:
    """Train in the three ways, draw trace and accuracy, and compare their largest values over the seeds."""
    seeds, samples, steps = (2, 300, 400) if fast else (5, 500, 1300)
    found = {}
    for label, (rate, coefficient, _) in RUNS.items():
        runs = [trained(rate, coefficient, seed, samples, steps) for seed in range(seeds)]
        found[label] = np.array([trace for trace, _ in runs]), np.array([accuracy for _, accuracy in runs])
    out.mkdir(parents=True, exist_ok=True)
    picture(found).savefig(out / "penalised_trace.png")
    peaks, best = ([over_seeds(each[which]) for each in found.values()] for which in (0, 1))
    print(
        f"mean over {seeds} seeds without the penalty, with it, and at the larger rate: peak of the trace "
        f"{peaks[0]:.1f}, {peaks[1]:.1f} and {peaks[2]:.1f}, best test accuracy {best[0]:.1%}, {best[1]:.1%} and "
        f"{best[2]:.1%}"
    )
    assert peaks[1] < peaks[0] / 2
    assert fast or best[0] < best[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="two seeds, fewer samples and steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
