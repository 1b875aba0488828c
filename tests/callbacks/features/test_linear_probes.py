"""Linear probes of a network's layers, against the same mathematics on features taken by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import AtFitEnd, LinearProbes
from lightning_probes.functional.features.cka import permutations
from lightning_probes.functional.features.read_out import folds_of, read_classes
from lightning_probes.probing.isolation.seeding import derived_seed
from tests.callbacks.models import Supervised, loader, trainer


def separable(samples: int = 240, classes: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :classes].argmax(1)


def deep() -> Supervised:
    torch.manual_seed(0)
    return Supervised(nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, 3)))


def test_accuracy_of_each_layer_is_that_of_its_features() -> None:
    x, y = separable()
    module = deep().eval()
    seen: list[Tensor] = []

    def predict(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        seen.append(torch.cat([batch[0], batch[1][:, None]], 1))
        return module(batch[0]), batch[1]

    probe = LinearProbes(per_layer=True, predict_fn=predict)
    results = probe.evaluate(module, DataLoader(TensorDataset(x, y), batch_size=50))
    drawn = torch.cat(seen[-5:])  # in the order in which they are drawn
    x, y, net = drawn[:, :4], drawn[:, 4].long(), module.net
    generator = torch.Generator().manual_seed(derived_seed(0, 0))
    folds = folds_of(permutations(240, 1, generator, torch.device("cpu"))[0])
    features = {"net.0": net[0](x), "net.1": net[0](x).relu(), "net.3": module(x)}
    read = {name: read_classes(f.detach().double(), y, 3, folds).tolist() for name, f in features.items()}
    assert results["linear/accuracy"].row_labels == tuple(read)
    assert results["linear/accuracy"].values[:, 0].tolist() == [accuracy for accuracy, _ in read.values()]
    assert results["linear/depth"].standard_error.tolist() == [error for _, error in read.values()]
    assert results["linear/depth"].x.tolist() == [0, 0.5, 1]
    assert results["linear/last"].value == read["net.3"][0]
    assert results["linear/layer/net/1"].value == read["net.1"][0]
    best = max(read, key=lambda name: read[name][0])
    assert results["linear/best"].value == read[best][0]
    assert results["linear/best_depth"].value == [*read].index(best) / 2
    assert results["linear/head"].value == pytest.approx(float((module(x).argmax(1) == y).double().mean()))
    assert results["linear/gap"].value == results["linear/best"].value - results["linear/head"].value
    assert results["linear/chance"].value == pytest.approx(int(torch.bincount(y).max()) / 240)
    assert 0.2 < results["linear/null_p95"].value < 0.5


def test_micro_batches_do_not_change_the_numbers() -> None:
    x, y = separable()
    data = DataLoader(TensorDataset(x, y), batch_size=240)
    one, other = (LinearProbes(micro_batch_size=size).evaluate(deep(), data) for size in (240, 37))
    assert one["linear/accuracy"].values.tolist() == other["linear/accuracy"].values.tolist()


def test_validation_data_is_the_default_and_training_data_takes_its_place_with_a_word() -> None:
    x, y = separable()
    memorised = torch.randint(3, (240,), generator=torch.Generator().manual_seed(1))

    def last(**arguments: Any) -> tuple[float, LinearProbes]:
        module = deep()
        module.validation_step = lambda batch, batch_idx: None  # type: ignore[assignment]
        probe = LinearProbes(schedule=AtFitEnd(), **arguments)
        val = loader(x, y) if "data" not in arguments else None
        trainer(max_epochs=1, callbacks=[probe]).fit(module, loader(x, memorised), val)
        return probe.history[-1]["linear/last"], probe

    on_validation, quiet = last()
    assert on_validation > 0.6
    assert not any("memorised" in said for said in quiet.say.said)
    assert last(data="train")[0] < 0.5
    probe = LinearProbes(schedule=AtFitEnd())
    trainer(max_epochs=1, callbacks=[probe]).fit(deep(), loader(x, y))
    assert any("accuracy includes what the network has memorised" in said for said in probe.say.said)


class Unlabelled(Supervised):
    """Validation data without labels."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self(batch[0])


def test_validation_data_without_labels_is_no_data_to_measure_on() -> None:
    x, y = separable()
    probe = LinearProbes(schedule=AtFitEnd())
    trainer(max_epochs=1, callbacks=[probe]).fit(Unlabelled(deep().net), loader(x, y), loader(x))
    assert any("measuring on training data" in said for said in probe.say.said)
    assert probe.history[-1]["linear/last"] > 0.6


WRONG: dict[str, tuple[Any, str]] = {
    "multi-label": (lambda x: (x[:, :3] > 0).float(), "each sample has 3 labels that are 0 or 1, .* pass predict_fn="),
    "one-hot": (lambda x: torch.eye(3)[x[:, :3].argmax(1)], "or with the index of the class if one of them is 1"),
    "tokens": (lambda x: (10 * x).long(), "each sample has 4 targets, like the tokens .* pass predict_fn="),
    "too many": (lambda x: torch.zeros(len(x), 2, 2), "each sample has 4 targets, like the tokens"),
    "a scalar": (lambda x: torch.zeros(len(x), 0), r"targets of shape \(16, 0\) are not one for each of 16 samples"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_targets_than_one_label_are_refused_in_one_sentence_before_training(kind: str) -> None:
    x, _ = separable()
    targets, sentence = WRONG[kind]
    probe = LinearProbes(predict_fn=lambda module, batch: (module(batch[0]), targets(batch[0])))
    with pytest.raises(MisconfigurationException, match=sentence):
        trainer(max_epochs=1, callbacks=[probe]).fit(deep(), loader(x, x[:, :3].argmax(1)))


def test_no_targets_and_few_samples_are_refused() -> None:
    x, y = separable()
    with pytest.raises(MisconfigurationException, match="no tensor of targets, so there is nothing to read off"):
        LinearProbes(predict_fn=lambda module, batch: (module(batch[0]), None)).evaluate(deep(), loader(x, y))
    with pytest.raises(MisconfigurationException, match="need at least 10 samples, and have 9"):
        LinearProbes(num_samples=9).evaluate(deep(), loader(x, y))


def test_ignored_labels_do_not_count() -> None:
    x, y = separable()
    kept = torch.arange(240) % 3 > 0
    some = LinearProbes().evaluate(deep(), loader(x, y.masked_fill(~kept, -100)))
    assert some["linear/chance"].value == pytest.approx(int(torch.bincount(y[kept]).max()) / int(kept.sum()))
    assert some["linear/last"].value > 0.6
    error = some["linear/last"].standard_error
    assert error == pytest.approx((some["linear/last"].value * (1 - some["linear/last"].value) / 160) ** 0.5)


@pytest.mark.parametrize(
    ("targets", "outputs", "task", "classes"),
    [
        (lambda x: x[:, :3].argmax(1), 3, "auto", True),
        (lambda x: (x[:, 0] > 0).float(), 1, "auto", True),
        (lambda x: x[:, 0] > 0, 1, "auto", True),
        (lambda x: (x[:, :1] > 0).long(), 1, "auto", True),
        (lambda x: x[:, :2].sin(), 2, "auto", False),
        (lambda x: (10 * x[:, 0]).long(), 1, "auto", False),  # a count, with one output
        (lambda x: x[:, :3].argmax(1), 1, "classes", True),
        (lambda x: x[:, :3].argmax(1), 3, "regression", False),
        (lambda x: (10 * x[:, :1]).long() + 5, 3, "auto", True),  # any whole numbers are classes
    ],
)
def test_task_follows_from_targets_and_outputs(targets: Any, outputs: int, task: Any, classes: bool) -> None:
    x, _ = separable()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))
    probe = LinearProbes(task=task, loss_fn=lambda module, batch: module(batch[0]).sum())
    results = probe.evaluate(net, loader(x, targets(x)))
    assert (results["linear/chance"].value > 0) == classes
    assert ("R²" in results["linear/depth"].y_label) == (not classes)
    assert results["linear/best"].value > results["linear/null_p95"].value


def test_regression_of_a_linear_function_of_a_layer_is_exact_and_the_head_is_scored_alike() -> None:
    x, _ = separable()
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    results = LinearProbes(per_layer=True).evaluate(net, loader(x, 3 * x[:, :1] + 1))
    assert results["linear/layer/0"].value == pytest.approx(1, abs=1e-5)
    targets = 3 * x[:, :1] + 1
    expected = 1 - (net(x) - targets).square().sum() / (targets - targets.mean()).square().sum()
    assert results["linear/head"].value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("probabilities", [False, True])
def test_head_of_one_output_is_read_as_logit_or_probability(probabilities: bool) -> None:
    x, _ = separable()
    net = nn.Sequential(nn.Linear(4, 1, bias=False), *([nn.Sigmoid()] if probabilities else []))
    nn.init.constant_(net[0].weight, 0.0)
    net[0].weight.data[0, 0] = 5.0
    results = LinearProbes().evaluate(net, loader(x, (x[:, 0] > 0).float()))
    assert results["linear/head"].value == 1


def test_other_labels_than_the_networks_have_no_head() -> None:
    x, y = separable()
    probe = LinearProbes(predict_fn=lambda module, batch: (module(batch[0]), 10 * batch[1]))
    results = probe.evaluate(deep(), loader(x, y))
    assert results["linear/last"].value > 0.6
    assert "linear/head" not in results
    assert "linear/gap" not in results


class Skips(nn.Module):
    """Leaves out a layer on batches of an even number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if len(x) % 2:
            self.middle(hidden)
        return self.last(hidden)


def test_a_layer_that_a_micro_batch_passes_by_has_no_accuracy_and_the_others_keep_theirs() -> None:
    x, y = separable(samples=65)
    results = LinearProbes(micro_batch_size=33).evaluate(Skips(), loader(x, y, batch_size=65))
    assert np.isnan(results["linear/accuracy"].values[:, 0]).tolist() == [False, True, False]
    assert results["linear/best"].value > 0.5


def test_constant_layer_is_left_out_by_auto_and_at_chance_by_name() -> None:
    x, y = separable()
    module = deep()
    nn.init.zeros_(module.net[3].weight)
    assert LinearProbes().evaluate(module, loader(x, y))["linear/accuracy"].row_labels == ("net.0", "net.1")
    named = LinearProbes(layers=["net.3"]).evaluate(module, loader(x, (x[:, 0] > 1).long()))
    assert named["linear/last"].value == named["linear/chance"].value


def test_wide_layers_with_few_samples_are_warned_of() -> None:
    x, y = separable()
    probe = LinearProbes()
    probe.evaluate(Supervised(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 3))), loader(x, y))
    (said,) = [said for said in probe.say.said if "are few" in said]
    assert "240 samples are few for the 100 features of layer 'net.0'" in said
    assert "num_samples=400" in said


def test_a_layer_that_changes_its_width_is_refused_by_name() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.flat = nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            self.flat(self.body(x).repeat(1, 1 + len(x) % 2))
            return self.head(self.body(x))

    x, y = separable(samples=65)
    with pytest.raises(ValueError, match=r"layer 'net\.flat' returned 4 features for 32 samples, and 8 for each"):
        LinearProbes(micro_batch_size=33).evaluate(Supervised(Grows()), loader(x, y, batch_size=65))
