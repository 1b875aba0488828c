"""The Hessian does not see the kinks of ReLUs, and a difference of gradients does.

Within a small step many ReLUs switch, and the gradient jumps where one does. The Hessian is blind to these jumps, so
that its product with the step is not the change of the gradient. For a smooth activation such as Mish (Misra 2019,
arXiv:1908.08681) the two agree. Networks with either are trained on MNIST-1D from several seeds, and the `kink_gap` of
`LossPlane` compares the two at the end.

python examples/gallery/relu_and_mish.py --out pictures     # about a minute of one CPU core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, LossPlane
from lightning_probes.reporting.panels.style import BLUE, VERMILLION

STEP = 0.01  # filter norms, which LossPlane takes in float64


class Classifier(LightningModule):
    """Two hidden layers of 64 units and an activation, in float64."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(40, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10)
        ).double()  # fmt: skip

    def forward(self, signal: Tensor) -> Tensor:
        return self.layers(signal)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def signals() -> TensorDataset:
    """MNIST-1D, the training samples."""
    data = make_dataset(get_dataset_args())
    return TensorDataset(torch.as_tensor(data["x"]).double(), torch.as_tensor(data["y"]))


def gap(activation: type[nn.Module], seed: int, steps: int, data: TensorDataset) -> float:
    """The kink gap after training."""
    seed_everything(seed, verbose=False)
    probe = LossPlane(resolution=3, num_samples=512, seed=seed, schedule=AtFitEnd())
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(activation), DataLoader(data, 64, shuffle=True))
    return float(probe.history[-1]["plane/kink_gap"])


def picture(gaps: dict[str, list[float]]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    axes = canvas.subplots()
    for (name, values), colour in zip(gaps.items(), (VERMILLION, BLUE), strict=True):
        axes.plot(range(len(values)), values, "o", color=colour, label=name)
    axes.set(yscale="log", xticks=range(len(next(iter(gaps.values())))), xlabel="seed", ylabel="kink_gap (no unit)")
    axes.set_title("Change of the gradient that the Hessian does not see, as a share", fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train the networks, draw the gap of each, and compare the least of ReLU with the largest of Mish."""
    seeds, steps = (1, 80) if fast else (5, 300)
    data = signals()
    kinds = {"ReLU": nn.ReLU, "Mish": nn.Mish}
    gaps = {name: [gap(kind, seed, steps, data) for seed in range(seeds)] for name, kind in kinds.items()}
    out.mkdir(parents=True, exist_ok=True)
    picture(gaps).savefig(out / "relu_and_mish.png")
    least, most = min(gaps["ReLU"]), max(gaps["Mish"])
    print(f"kink_gap over a step of {STEP} filter norms: at least {least:.3f} with ReLU, at most {most:.5f} with Mish")
    assert least > 10 * most


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer seeds and steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
