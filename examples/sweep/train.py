"""One trial of a sweep: a small convolutional network on MNIST-1D, run by LightningCLI, with probes that may end it.

python train.py fit --config base.yaml                                                 # one run
python train.py fit --config base.yaml --model.lr=0.3                                  # what a sweep agent calls
python train.py fit --config base.yaml --trainer.callbacks+=lightning_probes.LayerCKA  # one more probe
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningCLI
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class ConvNet(LightningModule):
    """Three 1-D convolutions with BatchNorm, nothing else."""

    def __init__(self, lr: float = 0.05, momentum: float = 0.9, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv1d(1, width, 5, stride=2), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Conv1d(width, width, 3, stride=2), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Conv1d(width, width, 3, stride=2), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Flatten(), nn.Linear(3 * width, 10),
        )  # fmt: skip

    def forward(self, signal: Tensor) -> Tensor:
        return self.layers(signal)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        signal, digit = batch
        loss = cross_entropy(self(signal), digit)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        signal, digit = batch
        self.log("val/loss", cross_entropy(self(signal), digit), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=self.hparams["momentum"])


class MNIST1D(LightningDataModule):
    """Signals of 40 points, made on the spot; four fifths to train on, the rest to validate."""

    def __init__(self, batch_size: int = 128, num_samples: int = 5000) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        arguments = get_dataset_args()
        arguments.num_samples = num_samples
        data = make_dataset(arguments)
        self.train, self.val = (
            TensorDataset(torch.tensor(data[x]).float()[:, None], torch.tensor(data[y]).long())
            for x, y in (("x", "y"), ("x_test", "y_test"))
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)


def main(args: ArgsType = None) -> LightningCLI:
    """Train as the command line says, or as `args` do where trials share a process."""
    torch.set_num_threads(1)  # for tensors this small a second thread only waits for the first
    # Trials of one directory would find the configuration of the trial before.
    return LightningCLI(ConvNet, MNIST1D, args=args, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
