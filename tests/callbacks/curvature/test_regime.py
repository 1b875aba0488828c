"""The rule of the regimes, on made-up runs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes.callbacks.curvature.regime import Regime, Seen, is_divergent, regime_of, seen_before

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)


def run(losses: list[float], curvatures: list[float], ratios: list[float | None]) -> list[Seen]:
    return [Seen(*each) for each in zip(STEPS, losses, curvatures, ratios, strict=False)]


def level(value: float, count: int = 9) -> list[float]:
    return [value] * count


def test_a_small_ratio_throughout_and_a_level_curvature_are_lazy() -> None:
    assert regime_of(run(level(1.0), level(5.0), level(0.4))) is Regime.LAZY  # type: ignore[arg-type]
    assert regime_of(run(level(1.0), [5.0, *level(14.0, 8)], level(0.4))) is Regime.LAZY  # type: ignore[arg-type]


def test_a_curvature_that_changed_threefold_is_not_lazy() -> None:
    assert regime_of(run(level(1.0), [5.0, 16.0, *level(5.0, 7)], level(0.4))) is Regime.UNSETTLED  # type: ignore[arg-type]


def test_two_measurements_settle_nothing() -> None:
    assert regime_of(run([1.0, 0.9], [5.0, 5.0], [0.4, 0.4])) is Regime.UNSETTLED
    assert regime_of(run([1.0, 0.9], [5.0, 5.0], [1.0, 1.0])) is Regime.UNSETTLED


def test_the_last_three_ratios_near_one_are_the_edge() -> None:
    rising: list[float | None] = [0.2, 0.3, 0.5, 0.7, 0.86, 0.9, 1.1]
    assert regime_of(run(level(1.0, 7), level(5.0, 7), rising)) is Regime.EDGE
    assert regime_of(run(level(1.0, 5), level(5.0, 5), rising[:5])) is Regime.UNSETTLED


def landing(ratio: float | None = 1.5, peak: float = 2.0, loss: float = 0.5, curvature: float = 3.0) -> list[Seen]:
    return [
        Seen(0, 1.0, 5.0, ratio), Seen(2, peak, 7.0, 2.0), Seen(64, loss, curvature, 0.9)
    ]  # fmt: skip


def test_a_rise_above_the_threshold_and_a_landing_below_are_a_catapult() -> None:
    assert regime_of(landing()) is Regime.CATAPULT
    assert regime_of(landing()[:2]) is Regime.UNSETTLED


@pytest.mark.parametrize(
    "without",
    [landing(ratio=0.9), landing(ratio=None), landing(peak=1.04), landing(loss=1.1), landing(curvature=4.6)],
    ids=["stable from the start", "ratio unknown", "no rise", "not below the start", "no flatter place"],
)
def test_each_part_of_the_catapult_is_needed(without: list[Seen]) -> None:
    assert regime_of(without) is not Regime.CATAPULT


def test_a_rise_after_thirty_steps_is_no_catapult() -> None:
    late = [Seen(0, 1.0, 5.0, 1.5), Seen(31, 2.0, 7.0, 2.0), Seen(64, 0.5, 3.0, 0.9)]
    assert regime_of(late) is not Regime.CATAPULT


def test_a_catapult_stays_one_at_the_edge() -> None:
    before = [Seen(each.step, each.loss, each.curvature, each.ratio, int(Regime.CATAPULT)) for each in landing()]
    after = [Seen(step, 0.4, 6.0, 1.0) for step in (128, 256, 512)]
    assert regime_of([*before, *after]) is Regime.CATAPULT


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergent_for_good(loss: float) -> None:
    broken = [Seen(0, 1.0, 5.0, 0.4), Seen(1, loss)]
    assert regime_of(broken) is Regime.DIVERGENT
    assert regime_of([*broken, Seen(2, 1.0, 5.0, 0.4)]) is Regime.DIVERGENT


def test_a_high_loss_is_divergent_after_a_doubling_of_steps_and_no_longer_when_it_falls() -> None:
    high = [Seen(0, 1.0), *(Seen(step, 20.0) for step in STEPS[1:])]
    assert [is_divergent(high[: last + 1]) for last in range(len(high))] == [*level(False, 7), True, True]
    assert not is_divergent([*high, Seen(256, 9.0)])


@given(st.lists(st.floats(10.1, 1e6), min_size=2, max_size=6))
def test_no_height_before_step_sixty_is_divergent(losses: list[float]) -> None:
    """A healthy catapult peaks within these steps, however high."""
    assert not is_divergent([Seen(0, 1.0), *(Seen(10 * at + 9, loss) for at, loss in enumerate(losses))])


def test_a_measurement_without_a_loss_had_one_that_was_not_finite() -> None:
    (seen,) = seen_before([{"step": 3, "epoch": 0, "mine/regime": 3}], "mine")
    assert (seen.step, seen.regime) == (3, 3)
    assert math.isnan(seen.loss)
