from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="package", autouse=True)
def quiet_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """W&B says nothing, keeps its files to itself, and leaves no variable behind."""
    root = tmp_path_factory.mktemp("wandb-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_DISABLE_GIT", "true")
        patch.setenv("WANDB_MODE", "offline")
        for kind in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(root / kind))
        for variable in ("WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT"):
            patch.delenv(variable, raising=False)
        yield


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """Where a test's runs go; a run it left open is finished."""
    import wandb

    yield tmp_path
    wandb.finish()
