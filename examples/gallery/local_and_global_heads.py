"""The first block of a vision transformer mixes local and global heads.

Some heads of the first block look at neighbours and others far away, while those of later blocks stay near the distance
of equal weights (Raghu et al. 2021, arXiv:2108.08810). Transformers of four blocks are trained on the signals of
MNIST-1D, cut into ten patches of four points, and `AttentionDistance` measures each head. Networks differ much at this
size, so distances are means over three of them.

python examples/gallery/local_and_global_heads.py --out pictures     # about a minute of one CPU core
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from mnist1d.data import get_dataset_args, make_dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, AttentionDistance, Heatmap
from lightning_probes.reporting.panels.style import BLUE, GREY, VERMILLION
from lightning_probes.results import FloatArray

BLOCKS, HEADS, WIDTH, PATCH = 4, 4, 24, 4
UNIFORM = PATCH * (10 - 1 / 10) / 3  # mean distance of ten patches


class ViT(LightningModule):
    """Ten patches and a CLS token, pre-norm blocks, weights of unit gain, Adam with a warm-up and a cosine."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.patches = nn.Linear(PATCH, WIDTH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 11, WIDTH))
        blocks = (
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(BLOCKS)
        )
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 10)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=(1.4 if "linear1" in name else 1.0) * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, signal: Tensor) -> Tensor:
        patches = self.patches(signal.unflatten(1, (-1, PATCH)))
        tokens = torch.cat([self.cls.expand(len(signal), -1, -1), patches], 1) + self.positions
        return self.head(self.blocks(tokens)[:, 0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)

        def factor(step: int) -> float:
            return min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / self.steps)) / 2

        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def signals(samples: int) -> TensorDataset:
    """MNIST-1D, standardised; four fifths of the samples."""
    settings = get_dataset_args()
    settings.num_samples = samples
    made = make_dataset(settings)
    x = torch.tensor(made["x"], dtype=torch.float32)
    return TensorDataset((x - x.mean()) / x.std(), torch.tensor(made["y"]))


def trained(data: TensorDataset, steps: int, seed: int) -> list[FloatArray]:
    """Distances of the sorted heads of each block, at the initialisation and after training."""
    seed_everything(seed, verbose=False)
    module, loader = ViT(steps), DataLoader(data, 32, shuffle=True)
    probe = AttentionDistance(schedule=AtFitEnd(), patch_size=PATCH, data="train", num_samples=512)
    before = probe.evaluate(module, loader)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    drawn = (results["attention/distance"] for results in (before, probe.results))
    return [result.values for result in drawn if isinstance(result, Heatmap)]


def picture(before: FloatArray, after: FloatArray) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    both = canvas.subplots(1, 2, sharey=True)
    for axes, blocks, title in zip(both, (before, after), ("At initialisation", "After training"), strict=True):
        for block, heads in enumerate(blocks):
            axes.plot([block] * HEADS, heads, color=BLUE if block else VERMILLION, marker="o", linewidth=2)
        axes.axhline(UNIFORM, color=GREY, linewidth=1, linestyle="--")
        axes.text(0.5, UNIFORM, "equal weights", fontsize=9, color=GREY, ha="center", va="bottom")
        axes.set(xlabel="block", xticks=range(BLOCKS), xlim=(-0.5, BLOCKS - 0.5))
        axes.set_title(title, fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("attention distance of a head (points)")
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train, draw the heads of each block, and compare how far apart those of the first and of later blocks are."""
    data, seeds = signals(8000 if fast else 16000), (0, 2) if fast else (0, 1, 2)
    before, after = np.mean([trained(data, 400, seed) for seed in seeds], axis=0)
    out.mkdir(parents=True, exist_ok=True)
    picture(before, after).savefig(out / "local_and_global_heads.png")
    first, *later = np.ptp(after, axis=1)
    print(
        f"after training, the heads of the first block are between {after[0, 0]:.1f} and {after[0, -1]:.1f} points, "
        f"over {first:.1f}; those of later blocks lie over {min(later):.1f} to {max(later):.1f} points"
    )
    assert first > 1.3 * max(later)
    assert after[0, 0] < UNIFORM - 0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer samples and steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
