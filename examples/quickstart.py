"""Four probes inside a real training run: a small convolutional network on MNIST-1D, reported to Weights & Biases.

python examples/quickstart.py            # offline; prints how to sync the run
python examples/quickstart.py --online   # straight to wandb.ai
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_probes import FisherTrace, Flag, HTMLReport, InitInterpolation, LayerCKA, Probe, Sharpness

HEADLINES = {
    "fisher": "fisher/trace",
    "interpolation": "interpolation/max_rise",
    "cka": "cka/to_init_mean",
    "sharpness": "sharpness/lambda_max",
}


class ConvNet(LightningModule):
    """Three 1-D convolutions with BatchNorm, nothing else."""

    def __init__(self, lr: float = 0.05, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv1d(1, width, 5, stride=2), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Conv1d(width, width, 3, stride=2), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Conv1d(width, width, 3, stride=2), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Flatten(), nn.LazyLinear(10),
        )  # fmt: skip
        self.layers(torch.zeros(2, 1, 40))  # gives the lazy layer its size
        self.accuracy = MulticlassAccuracy(10)

    def forward(self, signal: Tensor) -> Tensor:
        return self.layers(signal)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        signal, digit = batch
        loss = cross_entropy(self(signal), digit)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        signal, digit = batch
        logits = self(signal)
        self.log("val/loss", cross_entropy(logits, digit), prog_bar=True)
        self.accuracy(logits, digit)
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)


def loaders(batch_size: int = 128) -> tuple[DataLoader, DataLoader]:
    """4,000 training and 1,000 test signals of 40 points, made on the spot."""
    data = make_dataset(get_dataset_args())
    train, test = (
        TensorDataset(torch.tensor(data[x]).float()[:, None], torch.tensor(data[y]).long())
        for x, y in (("x", "y"), ("x_test", "y_test"))
    )
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size)


def report(probes: list[Probe]) -> str:
    """One line a probe: its last value with its error, the flags that are up, and the seconds spent."""
    rows = [("probe", "last value", "flags raised", "measured", "seconds")]
    for probe in probes:
        key, last = HEADLINES[probe.name], probe.history[-1]
        error = f" ± {last[f'{key}_se']:.2g}" if f"{key}_se" in last else ""
        flags = [r.key.rpartition("/")[2] for r in probe.results.values() if isinstance(r, Flag) and r.raised]
        seconds = sum(entry[f"{probe.name}/seconds"] for entry in probe.history)
        value = f"{key} = {last[key]:.4g}{error}"
        rows.append(
            (type(probe).__name__, value, ", ".join(flags) or "none", f"{len(probe.history)} ×", f"{seconds:.1f}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def save_picture(probes: list[Probe], path: Path) -> None:
    """The first panel of each probe in one PNG."""
    import numpy as np
    from matplotlib.image import imsave

    from lightning_probes.reporting.static import pixels

    keys = {"fisher": None, "interpolation": "interpolation/loss", "cka": "cka/to_init", "sharpness": None}
    images = [pixels(probe.figure(keys[probe.name])) for probe in probes]
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, np.concatenate([np.concatenate(images[:2], axis=1), np.concatenate(images[2:], axis=1)]))


def main() -> None:
    """Train, and tell what the probes saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--online", action="store_true", help="send the run to wandb.ai while it trains")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for all that it writes")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # for tensors this small a second thread only waits for the first
    arguments.out.mkdir(parents=True, exist_ok=True)
    probes: list[Probe] = [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]
    logger = WandbLogger(project="lightning-probes-quickstart", save_dir=arguments.out, offline=not arguments.online)
    trainer = Trainer(
        max_epochs=arguments.epochs,
        logger=logger,
        callbacks=[
            *probes,
            HTMLReport(arguments.out / "report.html"),
            ModelCheckpoint(arguments.out / "checkpoints", save_top_k=-1),
        ],
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(ConvNet(), *loaders())

    save_picture(probes, arguments.out / "quickstart.png")
    run = logger.experiment
    place = run.url if arguments.online else Path(run.dir).parent
    run.finish()
    print(f"\n{report(probes)}\n")
    print(f"picture  {arguments.out / 'quickstart.png'}")
    print(f"report   {(arguments.out / 'report.html').absolute().as_uri()}")
    print(f"W&B run  {place}")
    if not arguments.online:
        print(f"sync it  wandb sync {place}")


if __name__ == "__main__":
    main()
