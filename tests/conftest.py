"""What every test runs under: one thread, a directory of its own, W&B offline and quiet."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Set before W&B is imported for the first time, and inherited by the processes that tests start.
os.environ |= {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
    "TOKENIZERS_PARALLELISM": "false",
}
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def private_wandb(tmp_path_factory: pytest.TempPathFactory) -> None:
    """W&B keeps its caches away from the user's."""
    root = tmp_path_factory.mktemp("wandb-home")
    os.environ |= {f"WANDB_{kind}_DIR": str(root / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a Trainer writes goes where the test's files go."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def quiet_lightning() -> Iterator[None]:
    """Lightning's remarks on tiny loaders and missing workers say nothing about the code under test."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for about in ("does not have many workers", "is smaller than the logging interval", "Checkpoint directory"):
            warnings.filterwarnings("ignore", message=f".*{about}.*")
        warnings.filterwarnings("ignore", module=r"lightning\.(pytorch|fabric).*", category=UserWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
