"""A vision transformer without the skip connections of one block falls into two halves.

Skip connections carry features through the whole network, so its layers are similar to one another. A transformer that
is trained without the two skip connections of one block has two groups of layers instead: those before and those after
it (Raghu et al. 2021, arXiv:2108.08810). Transformers of four blocks are trained on MNIST-1D, with all skip connections
and without those of the third block, and `LayerCKA` compares the outputs of their blocks.

python examples/gallery/without_two_skips.py --out pictures     # about a minute of one CPU core
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

from lightning_probes import Heatmap, LayerCKA
from lightning_probes.results import FloatArray

BLOCKS, HEADS, WIDTH, PATCH = 4, 4, 24, 4
WITHOUT = 2  # the block that has no skip connections


class Block(nn.Module):
    """Attention and an MLP, each behind a norm, and each beside a skip connection if it has them."""

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norms[0](tokens)
        tokens = self.attention(normed, normed, normed, need_weights=False)[0] + tokens * self.skips
        return self.mlp(self.norms[1](tokens)) + tokens * self.skips


class ViT(LightningModule):
    """Ten patches and a CLS token, Adam with a warm-up and a cosine."""

    def __init__(self, steps: int, all_skips: bool) -> None:
        super().__init__()
        self.steps = steps
        self.patches = nn.Linear(PATCH, WIDTH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 11, WIDTH))
        self.blocks = nn.Sequential(*(Block(all_skips or number != WITHOUT) for number in range(BLOCKS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

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
    """MNIST-1D, standardised."""
    settings = get_dataset_args()
    settings.num_samples = samples
    made = make_dataset(settings)
    x = torch.tensor(np.array(made["x"]), dtype=torch.float32)
    return TensorDataset((x - x.mean()) / x.std(), torch.tensor(np.array(made["y"])))


def trained(data: TensorDataset, steps: int, all_skips: bool) -> FloatArray:
    """Train with seed 0. Returns the similarity of the blocks, shape `(BLOCKS, BLOCKS)`."""
    seed_everything(0, verbose=False)
    module, loader = ViT(steps, all_skips), DataLoader(data, 32, shuffle=True)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    probe = LayerCKA(layers=[f"blocks.{number}" for number in range(BLOCKS)], num_samples=1024)
    layers = probe.evaluate(module, DataLoader(data, 256), init_state=module.state_dict())["cka/layers"]
    assert isinstance(layers, Heatmap)
    return layers.values


def across(similarity: FloatArray) -> float:
    """Mean similarity of a block before the one without skip connections and a block from there on."""
    return float(similarity[:WITHOUT, WITHOUT:].mean())


def within(similarity: FloatArray) -> float:
    """Mean similarity of two blocks on one side of it."""
    return float(np.mean([similarity[0, 1], similarity[2, 3]]))


def picture(found: dict[str, FloatArray]) -> Figure:
    canvas = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    both = canvas.subplots(1, 2, sharey=True)
    for axes, (title, similarity) in zip(both, found.items(), strict=True):
        image = axes.imshow(similarity, vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(similarity):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="w" if value < 0.6 else "k")
        axes.set(xlabel="block", xticks=range(BLOCKS), yticks=range(BLOCKS))
        axes.set_title(title, fontsize=11, loc="left")
    both[0].set_ylabel("block")
    canvas.colorbar(image, ax=both, label="linear CKA (no unit)")
    return canvas


def main(out: Path, fast: bool = False) -> None:
    """Train both networks, draw the similarity of their blocks, and compare that across the block without skips."""
    data, steps = signals(2000 if fast else 8000), 200 if fast else 600
    whole, split = (trained(data, steps, all_skips) for all_skips in (True, False))
    out.mkdir(parents=True, exist_ok=True)
    titles = "All skip connections", f"Without those of block {WITHOUT}"
    picture(dict(zip(titles, (whole, split), strict=True))).savefig(out / "without_two_skips.png")
    print(
        f"similarity across block {WITHOUT}: {across(whole):.2f} with all skip connections, {across(split):.2f} "
        f"without its own; within each half {within(split):.2f}"
    )
    assert across(split) < across(whole) - 0.1
    assert within(split) > across(split) + 0.2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--fast", action="store_true", help="fewer samples and steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.fast)
