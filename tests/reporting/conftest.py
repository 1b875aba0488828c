from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def quiet_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B says nothing, keeps its files to itself, and leaves no variable behind (`offline=True` sets WANDB_MODE)."""
    before = dict(os.environ)
    root = tmp_path_factory.mktemp("wandb-home")
    os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true"}
    os.environ |= {f"WANDB_{kind}_DIR": str(root / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    for variable in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT"):
        os.environ.pop(variable, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """Where a test's runs go; a run it left open is finished."""
    import wandb

    yield tmp_path
    wandb.finish()
