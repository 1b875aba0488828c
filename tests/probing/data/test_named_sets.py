"""Probe sets by names of the user's own: as many as they like, of which the first is meant where no name is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import Unpack

from lightning_probes import AtFitEnd, EveryNSteps, InitInterpolation, Probe, Result, Scalar, Sharpness
from lightning_probes.probing import DataSource, DataSources, ModelView, ProbeArguments
from tests.callbacks.models import classification, loader, trainer
from tests.test_cli import built
from tests.test_runs import Validated


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


DATA = {name: classification(seed=seed) for seed, name in enumerate(("train", "val", "shifted"))}
SHIFTED = loader(*DATA["shifted"])


def fitted(probe: Probe, val: bool = True) -> Any:
    module = Validated(network())
    trainer(max_epochs=1, callbacks=[probe]).fit(module, loader(*DATA["train"]), loader(*DATA["val"]) if val else None)
    return module


@pytest.mark.parametrize("order", [("train", "val", "shifted"), ("shifted", "train"), ("val", "shifted", "train")])
def test_curves_have_the_names_in_front_but_that_of_the_first(order: tuple[str, ...]) -> None:
    sources = {"train": "train", "val": "val", "shifted": SHIFTED}
    probe = InitInterpolation(data={name: sources[name] for name in order}, num_alphas=2, schedule=AtFitEnd())
    module = fitted(probe)
    for name in order:
        key = "loss" if name == order[0] else f"{name}/loss"
        inputs, targets = DATA[name]
        expected = float(cross_entropy(module(inputs), targets).detach())
        assert probe.results[f"interpolation/{key}"].y[-1] == pytest.approx(expected, rel=1e-5)
    drawn = {key: probe.figure(key).layout.title.text for key in [picture.key for picture in probe.pictures()]}
    assert len(drawn) == 2 * len(order)
    for name in order:
        assert f"{name}: loss" in drawn["interpolation/loss" if name == order[0] else f"interpolation/{name}/loss"]


def test_settings_record_each_source_under_its_name() -> None:
    probe = InitInterpolation(data={"a": "train", "b/c": SHIFTED}, num_samples=16, num_alphas=2, schedule=AtFitEnd())
    fitted(probe)
    assert probe.settings["data"] == {"a": "train", "b/c": "<DataLoader>"}
    assert (probe.settings["a_samples"], probe.settings["b/c_samples"]) == (16, 16)


class Means(Probe):
    """Mean input of each of its sets, and of the one that is meant where no name is given."""

    defaults = ProbeArguments(name="means", schedule=EveryNSteps(1, stop=0), num_samples=64)

    def __init__(self, **shared: Unpack[ProbeArguments[DataSource | DataSources]]) -> None:
        super().__init__(**shared)

    def measure(self, view: ModelView) -> Iterator[Result]:
        for split in (None, *view.data):
            total = view.per_batch(lambda batch: batch.content[0].mean() * batch.size, split).sum()
            yield Scalar(f"{split}", float(total) / view.probe_set(split).num_samples)


def test_the_first_is_read_where_no_name_is_given() -> None:
    probe = Means(data={"ones": TensorDataset(torch.ones(8, 4), torch.zeros(8).long()), "train": "train"})
    fitted(probe)
    assert probe.history[0]["means/None"] == probe.history[0]["means/ones"] == 1.0
    assert probe.history[0]["means/train"] == pytest.approx(float(DATA["train"][0].mean()), abs=1e-5)


def test_a_collection_of_loaders_may_be_one_of_them() -> None:
    class OnPairs(Probe):
        defaults = ProbeArguments(name="pairs", schedule=EveryNSteps(1, stop=0), num_samples=8)

        def measure(self, view: ModelView) -> Iterator[Result]:
            yield Scalar("parts", float(len(view.batches()[0].content)))

    probe = OnPairs(data={"both": {"a": SHIFTED, "b": SHIFTED, "c": SHIFTED}})  # type: ignore[dict-item]
    fitted(probe)
    assert probe.history[0]["pairs/parts"] == 3.0


def test_what_the_run_lacks_and_what_is_empty_is_left_out_but_for_the_first() -> None:
    empty = DataLoader(TensorDataset(torch.ones(0, 4)))
    probe = Means(data={"a": "train", "b": "val", "c": empty})
    fitted(probe, val=False)
    assert "means/a" in probe.history[0]
    assert not {"means/b", "means/c"} & {*probe.history[0]}
    assert any("c data is left out: it is empty" in said for said in probe.say.said)
    with pytest.raises(MisconfigurationException, match=r"the probe data is empty.*data="):
        fitted(Means(data={"c": empty, "a": "train"}))
    with pytest.raises(MisconfigurationException, match=r"no 'val' data.*data="):
        fitted(Means(data={"b": "val"}), val=False)


def test_more_than_two_without_names_are_refused_with_how_to_name_them() -> None:
    with pytest.raises(MisconfigurationException, match=r"data=\{'train': 'train', 'shifted': loader\}"):
        fitted(InitInterpolation(data=("train", "val", SHIFTED)))


def test_a_probe_of_one_set_takes_the_first() -> None:
    named = Sharpness(data={"mine": SHIFTED}, schedule=EveryNSteps(1, stop=0))  # type: ignore[arg-type]
    plain = Sharpness(data=SHIFTED, schedule=EveryNSteps(1, stop=0))
    fitted(named), fitted(plain)
    key = "sharpness/lambda_max"
    assert named.history[0][key] == plain.history[0][key]


GIVEN = """
class_path: lightning_probes.InitInterpolation
init_args:
  data:
    train: train
    shifted: val
    other:
      class_path: lightning.pytorch.demos.boring_classes.RandomDataset
      init_args: {size: 32, length: 8}
"""


def test_yaml_gives_sources_by_name(tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [yaml.safe_load(GIVEN)]}}, sort_keys=False))
    _, [probe] = built([f"--config={path}"])
    assert [*probe.data] == ["train", "shifted", "other"]  # type: ignore[arg-type]
    assert probe.data["shifted"] == "val"  # type: ignore[index]
    assert len(probe.data["other"]) == 8  # type: ignore[index, arg-type]
