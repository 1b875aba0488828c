from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lightning_probes.reporting.panels.base import thin, worth_redrawing


@given(st.integers(1, 500), st.integers(1, 60))
def test_thinning_keeps_the_ends_the_order_and_at_most_so_many(count: int, most: int) -> None:
    kept = thin(range(count), most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    assert kept[-1] == count - 1
    assert most == 1 or kept[0] == 0


@given(st.integers(2, 500), st.integers(2, 60))
def test_thinning_keeps_items_an_equal_distance_apart(count: int, most: int) -> None:
    kept = thin(range(count), most)
    gaps = {right - left for left, right in pairwise(kept)}
    assert max(gaps) - min(gaps) <= 1


def test_pictures_are_drawn_at_each_of_the_first_events_and_then_sixteen_times_a_doubling() -> None:
    assert all(worth_redrawing(events) for events in range(1, 33))
    assert [sum(map(worth_redrawing, range(n, 2 * n))) for n in (32, 64, 1024, 65536)] == [16] * 4
