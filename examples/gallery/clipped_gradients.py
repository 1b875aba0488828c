"""One steep step rewrites a recurrent network, and clipping prevents it.

The gradient of a recurrent network grows with each step back in time, so single steps are far steeper than the usual
one (Pascanu et al. 2013, arXiv:1211.5063). A network with recurrent weights of norm 1.5 reads the signals of MNIST-1D
point by point. Without clipping, single steps change a tenth of the weights' length at once, and the network hardly
learns afterwards. `GradientNorms` shows such a step as it happens.

python examples/gallery/clipped_gradients.py --out pictures     # about a minute of one CPU core
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

from lightning_probes import EveryNSteps, GradientNorms
from lightning_probes.reporting.panels.style import BLUE, VERMILLION

CLIP = 1.0


class Recurrent(LightningModule):
    """A tanh network of 64 units that reads one point of a signal at a time, trained by SGD."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.RNN(1, 64, batch_first=True), nn.Linear(64, 10)
        nn.init.orthogonal_(self.recurrent.weight_hh_l0, gain=1.5)
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        states, _ = self.recurrent(batch[0][:, :, None])
        loss = cross_entropy(self.head(states[:, -1]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def signals(samples: int = 1000) -> TensorDataset:
    """MNIST-1D, standardised."""
    settings = get_dataset_args()
    settings.num_samples = samples
    made = make_dataset(settings)
    x = torch.tensor(np.array(made["x"]), dtype=torch.float32)
    return TensorDataset((x - x.mean()) / x.std(), torch.tensor(np.array(made["y"])))


def trained(data: TensorDataset, steps: int, clip: float | None) -> tuple[GradientNorms, list[float]]:
    """Train with seed 0, in batches of 64. Returns what was read at each step, and the losses."""
    seed_everything(0, verbose=False)
    monitor, module = GradientNorms(schedule=EveryNSteps(1)), Recurrent()
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[monitor], gradient_clip_val=clip, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, 64, shuffle=True))
    return monitor, module.losses


def column(monitor: GradientNorms, key: str) -> list[float]:
    return [entry[f"gradients/{key}"] for entry in monitor.history]


def picture(found: dict[str, tuple[GradientNorms, list[float]]]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    updates, losses = canvas.subplots(1, 2)
    for (label, (monitor, loss)), colour in zip(found.items(), (VERMILLION, BLUE), strict=True):
        updates.plot(column(monitor, "update_ratio"), color=colour, linewidth=0.9, label=label)
        smooth = np.convolve(loss, np.ones(20) / 20, "valid")
        losses.plot(np.arange(len(smooth)) + 10, smooth, color=colour, label=label)
    updates.set(yscale="log", xlabel="step", ylabel="gradients/update_ratio (share of the weights)")
    updates.set_title("Single steps rewrite the weights", fontsize=11, loc="left")
    updates.legend(frameon=False, fontsize=9)
    losses.set(xlabel="step", ylabel="training loss (nats, mean of 20 steps)")
    losses.set_title("Little is learned afterwards", fontsize=11, loc="left")
    losses.legend(frameon=False, fontsize=9)
    for axes in (updates, losses):
        axes.spines[["top", "right"]].set_visible(False)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train without and with clipping, draw what the gradients did, and compare the largest updates and the losses."""
    steps = 120 if fast else 300
    data = signals(500 if fast else 1000)
    found = {"not clipped": trained(data, steps, None), f"clipped at {CLIP:g}": trained(data, steps, CLIP)}
    out.mkdir(parents=True, exist_ok=True)
    picture(found).savefig(out / "clipped_gradients.png")
    largest = [max(column(monitor, "update_ratio")) for monitor, _ in found.values()]
    last = [float(np.mean(losses[-30:])) for _, losses in found.values()]
    print(
        f"largest change of the weights in one step: {largest[0]:.1%} without clipping, {largest[1]:.1%} with it; "
        f"loss at the end: {last[0]:.2f} and {last[1]:.2f}"
    )
    assert largest[0] > 3 * largest[1]
    assert fast or last[0] > last[1] + 0.15


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer samples and steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
