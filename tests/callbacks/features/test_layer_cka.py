from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes import EveryNSteps, LayerCKA
from lightning_probes.functional.features import layer_hsic
from lightning_probes.functional.features.cka import unbiased_cka
from lightning_probes.functional.features.feature_matrix import feature_matrix
from lightning_probes.functional.features.layer_hsic import (
    BatchHSIC,
    Layers,
    NarrowLayers,
    all_pairs,
    features_are_cheaper,
)
from lightning_probes.probing.run.init_state import capture_state
from tests.callbacks.models import Supervised, classification, loader, trainer


@pytest.fixture(autouse=True, params=["grams", "features"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every claim holds however the similarities are computed, which otherwise depends on sizes."""
    form: str = request.param
    monkeypatch.setattr(
        "lightning_probes.functional.features.layer_hsic.features_are_cheaper",
        lambda widths, samples: form == "features",
    )
    return form


def deep() -> Supervised:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, 3))
    return Supervised(net)


def test_matrix_equals_unbiased_cka_of_the_layers_features() -> None:
    x, y = classification()
    module = deep().eval()
    heatmap = LayerCKA(micro_batch_size=64).evaluate(module, loader(x, y))["cka/layers"]
    net = module.net
    features = [net[0](x), net[0](x).relu(), module(x)]
    assert heatmap.row_labels == ("net.0", "net.1", "net.3")  # dropout in eval mode returns what it was given
    expected = [[float(unbiased_cka(a, b)) for b in features] for a in features]
    assert np.allclose(heatmap.values, expected, atol=1e-5)


def test_layer_before_an_in_place_relu_is_compared_as_it_was() -> None:
    module = deep()
    heatmap = LayerCKA(layers=["net.0", "net.1"]).evaluate(module, loader(*classification()))["cka/layers"]
    assert heatmap.values[0, 1] < 0.99
    assert heatmap.values[0, 0] == pytest.approx(1.0)


def test_layers_that_are_equal_in_all_samples_are_left_out_by_auto() -> None:
    module = deep()
    nn.init.zeros_(module.net[3].weight)
    results = LayerCKA().evaluate(module, loader(*classification()))
    assert results["cka/layers"].row_labels == ("net.0", "net.1")
    assert not results["cka/flag/nonfinite"].raised


def test_similarity_to_initialisation_starts_at_one_and_falls() -> None:
    x, _ = classification()
    probe = LayerCKA(schedule=EveryNSteps(20), per_layer=True)
    trainer(max_epochs=25, callbacks=[probe]).fit(deep(), loader(x, x[:, :3].argmax(1)))
    assert probe.history[0]["cka/to_init_mean"] == pytest.approx(1.0)
    assert probe.history[-1]["cka/to_init_mean"] < 0.999
    assert probe.history[-1]["cka/layer/net/3"] < 0.999
    assert probe.results["cka/to_init"].values.shape == (3, 1)
    assert [step for step, _ in probe.progress.log.record.trail["cka/layers"]] == [0, 20, 40, 60, 80]


def test_similarity_to_a_given_initial_state_equals_cka_of_the_two_models() -> None:
    x, y = classification()
    before, now = deep(), deep()
    with torch.no_grad():
        for parameter in now.parameters():
            parameter.add_(torch.randn_like(parameter))
    result = LayerCKA(layers=["net.3"], micro_batch_size=64).evaluate(
        now, loader(x, y), init_state=capture_state(before)
    )
    expected = unbiased_cka(before.eval()(x), now.eval()(x))
    assert result["cka/to_init"].values[0, 0] == pytest.approx(float(expected), abs=1e-5)


def test_without_a_known_initialisation_the_rest_is_measured() -> None:
    results = LayerCKA().evaluate(deep(), loader(*classification()))
    assert "cka/layers" in results
    assert "cka/to_init_mean" not in results


class TwoStreams(nn.Module):
    """Two layers that look at unrelated halves of the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(32, width), nn.Linear(32, width), nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x[:, :32]), self.right(x[:, 32:])], 1))


@pytest.mark.parametrize("width", [8, 1000])
def test_unrelated_layers_are_near_zero_and_below_the_null_whether_wide_or_narrow(width: int) -> None:
    torch.manual_seed(0)
    x, y = classification(samples=256, inputs=64)
    results = LayerCKA(layers=["net.left", "net.right"]).evaluate(
        Supervised(TwoStreams(width)), loader(x, y, batch_size=64)
    )
    assert abs(results["cka/layers"].values[0, 1]) < 0.1
    assert 0 < results["cka/null_p95"].value < 0.1


class Recurrent(nn.Module):
    """A layer called twice, a layer that returns a tuple, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shared, self.lstm = nn.Conv2d(1, 3, 2), nn.Linear(3, 3), nn.LSTM(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x.unflatten(1, (1, 2, 2))).flatten(1)
        features = self.shared(torch.tanh(self.shared(features)))
        return self.lstm(features[:, None])[0][:, 0]


def test_calls_of_one_module_count_as_layers_and_tuples_and_images_are_features() -> None:
    heatmap = LayerCKA().evaluate(Supervised(Recurrent()), loader(*classification()))["cka/layers"]
    assert heatmap.row_labels == ("net.conv", "net.shared", "net.shared#2", "net.lstm")
    assert np.isfinite(heatmap.values).all()


@pytest.mark.parametrize("tokens", ["flatten", "mean", "cls"])
def test_tokens_of_a_sequence_are_taken_as_told(tokens: Any) -> None:
    torch.manual_seed(0)
    module = Supervised(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 5), nn.Flatten(), nn.Linear(10, 3)))
    x, y = classification()
    heatmap = LayerCKA(layers=["net.1", "net.3"], tokens=tokens, micro_batch_size=64).evaluate(module, loader(x, y))
    expected = unbiased_cka(feature_matrix(module.net[1](x.unflatten(1, (2, 2))), tokens), module(x))
    assert heatmap["cka/layers"].values[0, 1] == pytest.approx(float(expected), abs=1e-5)


def test_ragged_micro_batches_agree_with_equal_ones() -> None:
    x, y = classification(samples=250)
    values = [
        LayerCKA(micro_batch_size=size).evaluate(deep(), loader(x, y))["cka/layers"].values for size in (50, 60, 125)
    ]
    assert np.abs(values[1] - values[0]).max() < 0.03
    assert np.abs(values[2] - values[0]).max() < 0.03


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


def test_a_layer_that_a_micro_batch_passes_by_has_no_similarity_and_the_others_keep_theirs() -> None:
    x, y = classification(samples=65)
    values = LayerCKA(micro_batch_size=33).evaluate(Supervised(Skips()), loader(x, y))["cka/layers"].values
    assert np.isnan(values).tolist() == [[False, True, False], [True, True, True], [False, True, False]]


def test_each_micro_batch_is_compared_in_its_own_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = classification(samples=511)
    seen: list[type] = []

    def compare(layers: Layers, *arguments: Any) -> BatchHSIC:
        seen.append(type(layers))
        return all_pairs(layers, *arguments)

    monkeypatch.setattr("lightning_probes.callbacks.features.layer_cka.all_pairs", compare)
    expected = LayerCKA(micro_batch_size=256).evaluate(deep(), loader(x, y))
    assert seen == 2 * [NarrowLayers if form == "features" else Tensor]
    seen.clear()
    monkeypatch.setattr(layer_hsic, "features_are_cheaper", features_are_cheaper)
    found = LayerCKA(micro_batch_size=256).evaluate(deep(), loader(x, y))
    assert seen == [NarrowLayers, Tensor]  # of 256 samples, then of 255
    assert np.allclose(found["cka/layers"].values, expected["cka/layers"].values, atol=1e-5)
    assert found["cka/null_p95"].value == pytest.approx(expected["cka/null_p95"].value, rel=1e-4)


def test_globs_choose_layers_and_a_name_that_never_fires_lists_close_ones() -> None:
    results = LayerCKA(layers=["net.[03]"]).evaluate(deep(), loader(*classification()))
    assert results["cka/layers"].row_labels == ("net.0", "net.3")
    with pytest.raises(MisconfigurationException, match=r"layers: 'net\.7' matches nothing; close names are .*net\.0"):
        LayerCKA(layers=["net.7"]).evaluate(deep(), loader(*classification()))


def test_auto_takes_at_most_32_layers_evenly_and_says_which() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(80)), nn.Linear(4, 3))
    for layer in net[:-1]:
        nn.init.orthogonal_(layer.weight)  # else the features shrink to a constant, and such layers are left out
    probe = LayerCKA()
    labels = probe.evaluate(Supervised(net), loader(*classification()))["cka/layers"].row_labels
    assert len(labels) == 32
    assert (labels[0], labels[-1]) == ("net.0", "net.80")
    [said] = [message for message in probe.say.said if message.startswith("comparing 32 of 81 layers")]
    assert all(label in said for label in labels)


def test_layer_with_another_number_of_rows_is_refused_by_name_and_left_out_by_auto() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 3)))
    labels = LayerCKA().evaluate(Supervised(net), loader(*classification()))["cka/layers"].row_labels
    assert labels == ("net.0",)
    with pytest.raises(MisconfigurationException, match=r"layers: 'net\.1' returns 48 rows for 16 samples"):
        LayerCKA(layers=["net.1"]).evaluate(Supervised(net), loader(*classification()))


def test_dead_layer_is_not_reported_as_similar_to_anything() -> None:
    module = deep()
    with torch.no_grad():
        module.net[0].bias.fill_(-100.0)
    results = LayerCKA(layers=["net.*"]).evaluate(module, loader(*classification()))
    assert np.isnan(results["cka/layers"].values[1]).all()
    assert results["cka/flag/nonfinite"].raised


def test_mean_over_pairs_of_different_layers() -> None:
    results = LayerCKA().evaluate(deep(), loader(*classification()))
    values = results["cka/layers"].values
    assert results["cka/off_diagonal_mean"].value == pytest.approx((values.sum() - np.trace(values)) / 6)
    assert results["cka/off_diagonal_mean"].detail
    assert "cka/off_diagonal_mean" not in LayerCKA(layers=["net.0"]).evaluate(deep(), loader(*classification()))


@pytest.mark.parametrize(("number", "shuffles"), [(16, 10), (17, 5)])
def test_many_layers_are_shuffled_less_often(number: int, shuffles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(number)))
    for layer in net:
        nn.init.orthogonal_(layer.weight)
    seen: list[int] = []

    def compare(layers: Layers, generator: torch.Generator, num_permutations: int) -> BatchHSIC:
        seen.append(num_permutations)
        return all_pairs(layers, generator, num_permutations)

    monkeypatch.setattr("lightning_probes.callbacks.features.layer_cka.all_pairs", compare)
    LayerCKA().evaluate(Supervised(net), loader(*classification(classes=4)))
    assert set(seen) == {shuffles}
