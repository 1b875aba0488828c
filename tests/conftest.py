"""What every test runs under: one thread (or `OMP_NUM_THREADS`), a directory of its own, W&B offline, and quiet."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 (sets the level of its logger when it is first imported)
import pytest
import torch
from hypothesis import settings

# Set before W&B is imported for the first time, and inherited by the processes that tests start.
os.environ |= {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
}
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)
    logging.getLogger(_name).propagate = True  # to where older versions of pytest listen

# Remarks of other libraries on tiny loaders, old spellings among themselves, slow kernels, and few samples.
_NOISE = (
    r"ignore::UserWarning:lightning\.",
    r"ignore::FutureWarning:lightning\.",
    r"ignore::DeprecationWarning:lightning\.",
    "ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning",
    "ignore:There is a performance drop because:UserWarning",
    "ignore:.* samples are few for the .* features of layer:UserWarning",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-table", action="store_true", help="write the table that tests/test_matrix.py finds to README.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in _NOISE:
        config.addinivalue_line("filterwarnings", line)


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
def interruptible() -> None:
    """Lightning turns Ctrl-C off for the rest of a process whose fit was interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whose handler of a broken-off fit would keep out the next fit's


@pytest.fixture(scope="module")
def wandb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A W&B server of our own, for the tests of a file that send something."""
    from tests.wandb_server import serving  # not before the environment is set

    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server
    assert server.failures == []
