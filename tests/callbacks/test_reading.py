"""Callbacks are read straight through: few files lie between what they measure and the maths."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lightning_probes
from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Result, Sharpness
from lightning_probes.probing.view import ModelView

PACKAGE = Path(lightning_probes.__file__).parent
MATHS = ("functional/", "metrics/", "results.py")
CONTAINERS = ("__contains__", "__getitem__", "__iter__", "__len__")  # an entry or a length is read, as of any container
PROBES = {
    "FisherTrace": lambda **shared: FisherTrace(per_layer=True, explosion_factor=2.0, **shared),
    "InitInterpolation": lambda **shared: InitInterpolation(num_alphas=3, **shared),
    "LayerCKA": lambda **shared: LayerCKA(per_layer=True, **shared),
    "Sharpness": lambda **shared: Sharpness(
        quantities=("lambda_max", "sam", "trace"), per_layer=True, sharp_threshold=1.0, **shared
    ),
}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@dataclass
class Walk:
    """What ran within one call of `measure`.

    Attributes:
        between: Files of the package on a way from `measure` to a function of `functional/`, both left out.
        called: Files that code of callbacks calls.
        entries: How often each function was entered, by file and name.
    """

    between: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    entries: Counter[tuple[str, str]] = field(default_factory=Counter)


def file_of(frame: FrameType | None) -> str:
    """A frame's file within the package; empty for others."""
    path = Path(frame.f_code.co_filename) if frame else Path()
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ""


def walk_of(probe: Probe) -> Walk:
    """The second measurement of a fit."""
    measure, walks = type(probe).measure, []

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not (file := file_of(frame)):
            return
        above: list[str] = []
        caller = frame.f_back
        while caller is not None and caller.f_code is not measure.__code__:
            above.append(file_of(caller))
            caller = caller.f_back
        if caller is None:
            return
        walk, own = walks[-1], file_of(caller)
        walk.entries[file, frame.f_code.co_name] += 1
        if file.startswith("functional/"):
            walk.between |= {each for each in above if each and not each.startswith(MATHS)} - {own}
        if frame.f_code.co_name not in CONTAINERS and file_of(frame.f_back).startswith("callbacks/"):
            walk.called |= set() if file.startswith(MATHS) else {file} - {own}

    def traced(view: ModelView) -> Iterator[Result]:
        walks.append(Walk())
        before = sys.getprofile()
        sys.setprofile(look)
        try:
            yield from measure(probe, view)
        finally:
            sys.setprofile(before)

    vars(probe)["measure"] = traced
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.randint(3, (64,))), batch_size=8)
    trainer = Trainer(
        max_steps=17, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[probe],
    )  # fmt: skip
    trainer.fit(Net(), loader)
    assert len(walks) == 3
    return walks[1]


@pytest.fixture(scope="module", params=PROBES)
def walk(request: pytest.FixtureRequest) -> Walk:
    return walk_of(PROBES[request.param](num_samples=32, schedule=EveryNSteps(8)))


def test_at_most_five_files_lie_between_a_measurement_and_the_maths(walk: Walk) -> None:
    assert "probing/view.py" in walk.between
    # A step of its own at each point of a path.
    between = walk.between - {"callbacks/paths/batch_norm.py"}
    assert len(between) <= 5, sorted(between)


def test_what_callbacks_call_is_in_at_most_five_files(walk: Walk) -> None:
    assert "probing/view.py" in walk.called
    assert len(walk.called) <= 5, sorted(walk.called)


def test_what_holds_for_a_whole_event_is_not_found_out_for_each_micro_batch(walk: Walk) -> None:
    assert walk.entries["probing/data/batches.py", "num_samples"] <= walk.entries["probing/view.py", "mean"]


def test_a_pass_looks_up_the_data_module_once(walk: Walk) -> None:
    passes = walk.entries["probing/view.py", "_pass"]
    assert walk.entries["probing/isolation/twin.py", "datamodule"] == passes > 0


def test_a_sharpness_of_everything_takes_each_micro_batch_through_the_model_twice() -> None:
    walk = walk_of(PROBES["Sharpness"](num_samples=32, schedule=EveryNSteps(8)))
    assert "callbacks/curvature/hessian.py" in walk.between
    assert walk.entries["probing/view.py", "_pass"] == 2 * 4  # the gradient, whose graph serves all products; SAM
