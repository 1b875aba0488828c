"""The code in the documents is the code that a reader pastes: it runs."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import wandb
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import (
    AttentionDistance,
    DropoutStability,
    FisherPenalty,
    FisherTrace,
    GradientFlow,
    GradientNorms,
    Head2Toe,
    InitInterpolation,
    LayerCKA,
    LinearProbes,
    LossPlane,
    ModeConnectivity,
    Probe,
    ResidualFlow,
    Sharpness,
    TrainingRegime,
)
from lightning_probes.probing import Intervention, Monitor
from lightning_probes.probing.run.init_state import capture_state

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("probes/*.md"))]
RUN_ELSEWHERE = {"README.md", "CONTRIBUTING.md", "docs/sweeps.md", "docs/troubleshooting.md"}  # tests of their own
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)


class Regression(pl.LightningModule):
    def __init__(self, inputs: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.hidden, self.layer = nn.Linear(inputs, 8), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.hidden(x).relu())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(samples: int = 64) -> DataLoader[Any]:
    torch.manual_seed(0)
    x = torch.randn(samples, 4)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def python_blocks(name: str) -> list[str]:
    return blocks(name, "python")


def names_of_a_reader() -> dict[str, Any]:
    """What a reader has who is about to paste a block: a model, its data, and a Trainer."""
    return {"model": Regression(), "datamodule": loader(), "loader": loader(), "Trainer": pl.Trainer}


def slug(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return kept.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), flags=re.MULTILINE)}


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


def test_docstrings_of_the_probes_document_every_argument() -> None:
    """Shared arguments once, in the docstring of the base."""
    probes = (
        AttentionDistance, DropoutStability, FisherTrace, GradientFlow, Head2Toe, InitInterpolation, LayerCKA,
        LinearProbes, LossPlane, ModeConnectivity, ResidualFlow, Sharpness, TrainingRegime,
    )  # fmt: skip
    others = ((GradientNorms, Monitor), (FisherPenalty, Intervention))
    for probe, base in (*((each, Probe) for each in probes), *others):
        documented = "".join(filter(None, map(inspect.getdoc, (probe, base))))
        for name in inspect.signature(probe).parameters:
            assert f"\n    {name}: " in documented, f"{probe.__name__}: {name}"


@pytest.mark.parametrize("name", sorted({name for name in PAGES if python_blocks(name)} - RUN_ELSEWHERE))
def test_blocks_of_a_page_run_in_the_order_they_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = names_of_a_reader()
    torch.save(capture_state(names["model"]), "init.ckpt")
    try:
        for block in python_blocks(name):
            exec(compile(block, name, "exec"), names)
    finally:
        wandb.finish()


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_are_bash_and_name_files_that_exist(name: str) -> None:
    for block in blocks(name, "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for path in re.findall(r"\s([\w/.-]+\.(?:py|yaml|txt))\b", block):
            assert any((folder / path).exists() for folder in (ROOT, ROOT / "examples" / "sweep")), path


@pytest.mark.parametrize("name", PAGES)
def test_settings_of_a_page_are_yaml(name: str) -> None:
    for block in blocks(name, "yaml"):
        assert yaml.safe_load(block)


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = page.parent / path if path else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link
