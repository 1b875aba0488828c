"""What the callbacks say of themselves: the passes of an event, counted, and how to read each number and flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_probes import AtFitEnd
from lightning_probes.probing import Reading
from lightning_probes.probing.price import least_passes, most_passes
from lightning_probes.testing.declaring import check_readings, count_passes
from lightning_probes.testing.zoo import CASES
from tests.tester import EVERY, PROBES, fit, probe

# The passes of an event: of the first, and of those after it. Forward and backward.
DIRECT = [
    ("fisher", {}, "cnn", (1, 1), (1, 1)),
    ("fisher", {"labels": "exact"}, "cnn", (1, 2), (1, 2)),  # three classes
    ("cka", {}, "cnn", (2, 0), (1, 0)),
    ("interpolation", {"num_alphas": 5}, "cnn", (11, 0), (11, 0)),
    ("interpolation", {"num_alphas": 5}, "list_batch", (5, 0), (5, 0)),
    ("interpolation", {"num_alphas": 5, "batch_norm": "eval"}, "cnn", (5, 0), (5, 0)),
    ("sharpness", {"quantities": ("sam",)}, "cnn", (2, 1), (2, 1)),
]


@pytest.mark.parametrize(("kind", "arguments", "case", "first", "later"), DIRECT)
def test_an_event_takes_the_passes_that_its_price_declares(
    kind: str,
    arguments: dict[str, Any],
    case: str,
    first: tuple[float, float],
    later: tuple[float, float],
    tmp_path: Path,
) -> None:
    measured = probe(kind, data="train", **arguments)
    taken = count_passes(measured)
    fit(CASES[case].make, [measured], tmp_path)

    assert [tuple(round(passes, 6) for passes in event) for event in taken] == [first, later]
    least, most = least_passes(measured.price), most_passes(measured.price)
    for event in taken:
        for low, passes, high in zip(least, event, most, strict=True):
            assert low <= round(passes, 6) <= high
    if case == "cnn":  # which has all that a price may depend on
        for passes, high in zip(first, most, strict=True):
            assert passes == high or high == float("inf")


@pytest.mark.parametrize("quantities", [("lambda_max",), ("trace",), ("lambda_max", "sam", "trace")])
def test_products_are_at_most_as_many_as_declared(quantities: Any, tmp_path: Path) -> None:
    measured = probe("sharpness", quantities=quantities)
    taken = count_passes(measured)
    fit(CASES["cnn"].make, [measured], tmp_path)
    products = sum(item.products for item in measured.price if not item.only)
    for forward, backward in taken:
        direct = least_passes(measured.price)
        assert direct[0] <= round(forward, 6) <= direct[0] + products
        assert direct[1] < round(backward, 6) <= direct[1] + 2 * products


@pytest.mark.parametrize("kind", PROBES)
def test_every_flag_and_headline_has_a_reading_whatever_is_measured(kind: str, tmp_path: Path) -> None:
    more: dict[str, list[dict[str, Any]]] = {
        "fisher": [{"explosion_factor": 2.0, "per_layer": True}, {"labels": "empirical"}],
        "sharpness": [{"sharp_threshold": 1.0, "per_layer": True, "quantities": ("lambda_max", "sam", "trace")}],
        "cka": [{"per_layer": True}],
        "connectivity": [
            {"align": "activations", "repair": True, "cross": True},
            {"path": "string", "path_steps": 8, "schedule": AtFitEnd()},
        ],
        "dropout": [{"per_layer": True}],
        "linear": [{"per_layer": True}],
    }
    for arguments in more.get(kind, [{}]):
        measured = probe(kind, **arguments)
        fit(CASES["list_batch"].make, [measured], tmp_path)
        check_readings(measured)


@pytest.mark.parametrize("kind", EVERY)
def test_readings_are_single_sentences(kind: str) -> None:
    for key, reading in EVERY[kind](**{}).readings.items():
        assert isinstance(reading, Reading)
        for name, sentence in vars(reading).items():
            assert sentence[0].isupper(), (key, name)
            assert sentence.endswith("."), (key, name)
            assert ". " not in sentence.replace("et al. ", ""), (key, name)
