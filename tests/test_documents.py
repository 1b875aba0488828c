"""The code in the documents is the code that a reader pastes: it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import wandb
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import InitInterpolation, Probe, Sharpness
from lightning_probes.probing.init_state import capture_state

ROOT = Path(__file__).parents[1]


class Regression(pl.LightningModule):
    def __init__(self, inputs: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(samples: int = 64) -> DataLoader[Any]:
    torch.manual_seed(0)
    x = torch.randn(samples, 4)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_readme_blocks_run_in_the_order_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Regression()
    torch.save(capture_state(model), "init.ckpt")
    names: dict[str, Any] = {"model": model, "datamodule": loader(), "loader": loader()}
    try:
        for block in python_blocks("README.md"):
            exec(compile(block, "README.md", "exec"), names)
    finally:
        wandb.finish()  # a run left open would be taken up by the next logger
    assert names["trainer"].current_epoch == 20
    assert names["result"].value > 0


def test_usage_in_readme_is_at_most_ten_lines_of_code() -> None:
    lines = [line for line in python_blocks("README.md")[0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_probe_in_contributing_is_under_60_lines_and_measures_the_noise_scale() -> None:
    [block] = python_blocks("CONTRIBUTING.md")
    assert len(block.splitlines()) < 60
    names: dict[str, Any] = {"__name__": "contributing"}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    probe: Probe = names["GradientNoiseScale"](micro_batch_size=1, num_samples=64)
    model = Regression()
    value = probe.evaluate(model, loader())["noise/noise_scale"].value

    x, y = loader().dataset.tensors
    gradients = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(
                        model.training_step((x[i : i + 1], y[i : i + 1]), 0), model.parameters()
                    )
                ]
            )
            for i in range(64)
        ]
    ).double()
    trace = gradients.var(0).sum()
    assert value == pytest.approx(float(trace / (gradients.mean(0).square().sum() - trace / 64)), rel=1e-4)


def test_docstrings_of_the_probes_document_every_argument() -> None:
    for probe in (InitInterpolation, Sharpness):
        for name in probe.__init__.__annotations__:
            assert name == "return" or f"        {name}: " in (probe.__doc__ or ""), f"{probe.__name__}: {name}"
