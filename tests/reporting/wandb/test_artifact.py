"""A checkpoint that lies in W&B as an artifact, from the stand-in server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from torch import nn

from lightning_probes.reporting.wandb.artifact import downloaded
from tests.wandb_backend import Backend


def publish(name: str, files: dict[str, Any], folder: Path) -> str:
    """Log an artifact as a run does; the name by which arguments know it."""
    with wandb.init(project="ends", dir=folder) as run:
        artifact = wandb.Artifact(name, type="model")
        for file, content in files.items():
            torch.save(content, folder / file)
            artifact.add_file(str(folder / file), skip_cache=True)  # that it has to be downloaded
        run.log_artifact(artifact)
    return f"wandb:tester/ends/{name}:latest"


def test_the_checkpoint_of_an_artifact_is_downloaded_once(wandb_server: Backend, tmp_path: Path) -> None:
    state = nn.Linear(2, 1).state_dict()
    reference = publish("one", {"model.ckpt": {"state_dict": state}, "notes.txt": "hello"}, tmp_path)
    paths = [downloaded(reference, "other") for _ in range(2)]
    assert paths[0] == paths[1]
    assert wandb_server.downloads.count("model.ckpt") == 1
    assert torch.equal(torch.load(paths[0])["state_dict"]["weight"], state["weight"])


def test_an_artifact_with_several_checkpoints_is_an_error_that_lists_them(
    wandb_server: Backend, tmp_path: Path
) -> None:
    reference = publish("two", {"a.ckpt": {}, "b.ckpt": {}}, tmp_path)
    with pytest.raises(ValueError, match=r"other='wandb:.*' holds 2 files \(a.ckpt, b.ckpt\) .* as other=$"):
        downloaded(reference, "other")


def test_what_can_not_be_downloaded_is_one_sentence_that_names_the_argument(
    wandb_server: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = r"^other='wandb:tester/ends/none:v3' can't be downloaded from W&B \([^\n]*\): .* as other=$"
    with pytest.raises(ValueError, match=expected):
        downloaded("wandb:tester/ends/none:v3", "other")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ValueError, match=expected.replace(r"[^\n]*", ".*WANDB_MODE is 'offline'")):
        downloaded("wandb:tester/ends/none:v3", "other")
