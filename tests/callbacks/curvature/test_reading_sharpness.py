"""Sharpness is read straight through: few files lie between what it measures and the maths."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import lightning_probes
from lightning_probes import Sharpness
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.run.optimizers import optimizer_groups
from lightning_probes.probing.view import ModelView
from tests.callbacks.models import classification, loader

PACKAGE = Path(lightning_probes.__file__).parent
MATHS = ("functional/", "metrics/", "results.py")


def file_of(frame: FrameType | None) -> str:
    """A frame's file within the package; empty for others."""
    path = Path(frame.f_code.co_filename) if frame else Path()
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ""


@contextmanager
def called(files: set[str]) -> Iterator[None]:
    """Collect the files of callbacks that run, and the files that these call."""

    def look(frame: FrameType, event: str, _: Any) -> None:
        reads = frame.f_code.co_name in ("__contains__", "__getitem__", "__iter__", "__len__")  # as of any mapping
        if event == "call" and not reads and "callbacks/" in (file := file_of(frame)) + file_of(frame.f_back):
            files.add(file)

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_at_most_five_files_lie_between_sharpness_and_the_maths() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = classification()
    probe = Sharpness(
        quantities=("lambda_max", "sam", "trace"),
        loss_fn=lambda module, batch: cross_entropy(module(batch[0]), batch[1]),
    )
    adam = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(20):
        adam.zero_grad()
        cross_entropy(module(x), y).backward()
        adam.step()
    data = {"train": Drawing(32, 8).draw(loader(x, y))}
    view = ModelView(Twin(module), probe.objective, data, optimizers=optimizer_groups([adam], module))
    probe.prepare(view)

    files: set[str] = set()
    with called(files):
        keys = {result.key for result in probe.measure(view)}

    assert {"lambda_max_preconditioned", "stability_ratio", "trace", "sam"} <= keys
    assert any(file.startswith("functional/") for file in files)
    between = {file for file in files if file and not file.startswith(MATHS)} - {"callbacks/curvature/sharpness.py"}
    assert "callbacks/curvature/hessian.py" in between
    assert len(between) <= 5, sorted(between)
