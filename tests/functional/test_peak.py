from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes.functional.peak import peak_at_loss


def test_value_at_the_crossing_lies_on_the_line_between_the_two_measurements() -> None:
    # From (loss 2, value 3) to (loss 1, value 7): at a loss of 1.25 three quarters of the way, so 3 + 3/4 * 4.
    assert peak_at_loss([1.0, 3.0, 7.0], [4.0, 2.0, 1.0], level=1.25) == 6.0


def test_a_peak_before_the_crossing_counts_and_one_after_it_does_not() -> None:
    assert peak_at_loss([1.0, 9.0, 3.0, 50.0], [4.0, 3.0, 1.0, 0.5], level=2.0) == 9.0


def test_the_first_time_counts_where_the_loss_rises_again() -> None:
    assert peak_at_loss([1.0, 2.0, 8.0, 9.0], [4.0, 2.0, 3.0, 1.0], level=2.0) == 2.0


def test_none_takes_half_of_the_first_loss() -> None:
    assert peak_at_loss([1.0, 3.0], [4.0, 1.0]) == peak_at_loss([1.0, 3.0], [4.0, 1.0], level=2.0)


def test_a_run_that_starts_at_the_level_has_its_first_value() -> None:
    assert peak_at_loss([5.0, 7.0], [1.0, 0.5], level=1.0) == 5.0


@pytest.mark.parametrize(
    ("losses", "level"),
    [([], None), ([], 1.0), ([4.0, 3.0], 2.0), ([-1.0, -2.0], None), ([0.0, -2.0], None)],
    ids=["nothing measured", "nothing measured, level", "not there yet", "negative", "zero"],
)
def test_there_is_none_where_the_loss_has_not_fallen_so_far(losses: list[float], level: float | None) -> None:
    assert peak_at_loss([1.0] * len(losses), losses, level) is None


def test_a_loss_below_zero_can_be_asked_for_by_number() -> None:
    assert peak_at_loss([1.0, 3.0], [-1.0, -3.0], level=-2.0) == 2.0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.01, 1e6)), min_size=1), st.floats(0.01, 1e6))
def test_peak_is_at_least_the_first_value_and_at_most_the_largest(
    measured: list[tuple[float, float]], level: float
) -> None:
    values, losses = zip(*measured, strict=True)
    peak = peak_at_loss(values, losses, level)
    assert (peak is None) == (min(losses) > level)
    if peak is not None:
        assert values[0] <= peak <= max(values) * (1 + 1e-12)
