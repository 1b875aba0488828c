"""Processes that read shards of the data look at different samples, and choose the same layers and data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_probes.callbacks.features.samples import usable_split
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.layer_features import choose_layers
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView
from lightning_probes.testing.zoo.data import labelled, loader


class WithAnother(Processes):
    """Another process that has found something else."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.other = other

    def everyone(self, value: Any) -> list[Any]:
        return [value, self.other]


def view_of(other: Any) -> ModelView:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    drawn = Drawing(16, 8).draw(loader(labelled(4)))
    view = ModelView(Twin(net), Objective(), {"train": drawn, "val": drawn})
    return replace(view, processes=WithAnother(other))


def test_a_layer_that_is_the_same_for_all_samples_of_one_shard_is_chosen_in_no_process() -> None:
    torch.manual_seed(0)
    assert [*choose_layers(view_of(set()), "auto").widths] == ["0", "1", "2"]
    assert [*choose_layers(view_of({"1"}), "auto").widths] == ["0", "2"]


@pytest.mark.parametrize(("other", "split"), [("", "val"), ("no luck there", "train")])
def test_validation_data_on_which_one_process_can_not_run_the_model_is_used_in_none(other: str, split: str) -> None:
    said: list[str] = []

    class Hears(Speaker):
        def info(self, message: str) -> None:
            said.append(message)

    def check(view: ModelView, name: str) -> None:
        if name not in view.data:
            raise MisconfigurationException("none of it")

    assert usable_split(view_of(other), Hears("probe"), True, check) == split
    assert said == (["measuring on training data: no luck there"] if other else [])
