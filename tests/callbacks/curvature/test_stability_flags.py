"""When a stability ratio is worth a word, and when it is worth ending a run."""

from __future__ import annotations

import math

import pytest

from lightning_probes.callbacks.curvature.stability import stability_flags


def history(*measurements: tuple[float | None, float]) -> list[dict[str, float]]:
    """Events with a ratio and a loss; None where there was no ratio."""
    return [
        {"s/loss": loss} if ratio is None else {"s/stability_ratio": ratio, "s/loss": loss}
        for ratio, loss in measurements
    ]


def raised(ratio: float, loss: float, *before: tuple[float | None, float]) -> list[str]:
    return [flag.key for flag in stability_flags(ratio, loss, history(*before), "s", 2.0) if flag.raised]


def test_edge_of_stability_is_a_ratio_of_one() -> None:
    assert raised(0.99, 1.0) == []
    assert raised(1.0, 1.0) == ["edge_of_stability"]


@pytest.mark.parametrize("before", [(), ((1.5, 1.0),), ((3.0, 1.0), (1.5, 1.0)), ((3.0, 1.0), (None, 1.0))], ids=str)
def test_one_measurement_over_the_threshold_is_not_unstable(before: tuple[tuple[float | None, float], ...]) -> None:
    assert raised(3.0, 2.0, *before) == ["edge_of_stability"]


@pytest.mark.parametrize(
    ("before", "reference"),
    [
        (((0.9, 1.0), (3.0, 5.0)), 1.0),
        (((0.9, 9.0), (0.9, 1.0), (3.0, 5.0), (3.0, 0.5)), 1.0),
        (((None, 1.0), (None, 7.0), (3.0, 5.0)), 1.0),  # Adam's first steps: all that is known is where it began
        (((3.0, 1.0),), 1.0),
    ],
    ids=["risen at once", "since long", "no ratio before", "from the start"],
)
def test_unstable_means_a_loss_that_has_not_fallen_since_the_ratio_was_small(
    before: tuple[tuple[float | None, float], ...], reference: float
) -> None:
    assert raised(3.0, 0.99 * reference, *before) == ["edge_of_stability"]
    assert raised(3.0, 1.01 * reference, *before) == ["edge_of_stability", "unstable"]


def test_loss_that_is_not_finite_has_not_fallen() -> None:
    assert "unstable" in raised(3.0, math.nan, (0.9, 1.0), (3.0, 5.0))


def test_message_says_what_the_loss_did() -> None:
    *_, unstable = stability_flags(3.0, 2.5, history((0.9, 1.0), (3.0, 5.0)), "s", 2.0)
    assert unstable.message == (
        "sharpness was over 2 times the stability threshold twice in a row, now 3.00 times, and the loss has not "
        "fallen since (1 before, now 2.5): lower the learning rate"
    )
    assert unstable.level == "warning"
