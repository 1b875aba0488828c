import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNEpochs, EveryNSteps, LogSpacedSteps, Schedule

STEPS = st.integers(-1, 10**6)


def series(schedule, until):
    steps, step = [], schedule.next_step(-1)
    while step is not None and step <= until:
        steps.append(step)
        step = schedule.next_step(step)
    return steps


@st.composite
def step_schedules(draw):
    stop = draw(st.none() | st.integers(0, 10**5))
    if draw(st.booleans()):
        return EveryNSteps(draw(st.integers(1, 1000)), draw(st.integers(0, 1000)), stop)
    return LogSpacedSteps(draw(st.integers(1, 50)), stop)


@given(step_schedules(), STEPS)
def test_the_next_step_is_later_and_none_is_left_out(schedule, after):
    step = schedule.next_step(after)
    if step is None:
        assert schedule.stop is not None
        assert all(due <= after for due in series(schedule, schedule.stop))
        return
    assert step > after
    # Asked from anywhere in between, the answer is the same: what is due does not depend on when one asks.
    for between in {after, (after + step) // 2, step - 1}:
        assert schedule.next_step(between) == step


@given(st.integers(1, 50), st.integers(0, 200), st.none() | st.integers(0, 500))
def test_every_n_steps_is_an_arithmetic_series_with_both_ends(n, start, stop):
    last = 500 if stop is None else stop
    assert series(EveryNSteps(n, start, stop), 500) == list(range(start, last + 1, n))


@given(st.integers(1, 30))
def test_log_spaced_steps_are_the_rounded_powers_each_once(per_decade):
    powers = {round(10 ** (k / per_decade)) for k in range(5 * per_decade + 1)}
    assert series(LogSpacedSteps(per_decade), 10**5) == sorted({0} | powers)


@given(st.integers(1, 30))
def test_log_spaced_steps_are_dense_at_the_start_and_even_in_the_logarithm_later(per_decade):
    steps = series(LogSpacedSteps(per_decade), 10**6)
    assert steps[:2] == [0, 1]
    late = [step for step in steps if step > 100 * per_decade]
    ratios = [math.log10(b / a) * per_decade for a, b in pairwise(late)]
    assert all(abs(ratio - 1) < 0.02 for ratio in ratios)


def test_defaults_of_the_probes():
    assert series(LogSpacedSteps(12), 30) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 26]
    assert len(series(LogSpacedSteps(4), 100_000)) == 22


@pytest.mark.parametrize("schedule", [EveryNSteps(5, stop=10), LogSpacedSteps(2, stop=10)])
def test_stop_is_included(schedule):
    assert series(schedule, 1000)[-1] == 10
    assert schedule.next_step(10) is None


@given(st.integers(1, 20), st.integers(0, 100))
def test_every_n_epochs_fires_when_n_more_are_complete(n, epoch):
    fired = [e for e in range(epoch + 1) if EveryNEpochs(n).at_epoch_end(e)]
    assert len(fired) == (epoch + 1) // n


@given(st.lists(st.integers(1, 10**4), max_size=60), st.floats(1.0, 10.0))
def test_checkpoints_are_measured_first_and_then_when_the_step_has_grown(growth, factor):
    schedule, previous, steps = AtCheckpoints(factor), None, []
    for step in sorted(set(growth)):
        if schedule.at_checkpoint(step, previous):
            previous = step
            steps.append(step)
    assert steps[:1] == sorted(growth)[:1]
    assert all(b >= factor * a for a, b in pairwise(steps))
    skipped = set(growth) - set(steps)
    assert all(any(due < step < factor * due for due in steps) for step in skipped)


def test_growth_of_one_measures_every_checkpoint_and_step_zero_holds_nothing_up():
    assert AtCheckpoints(1.0).at_checkpoint(8, 7)
    assert AtCheckpoints().at_checkpoint(1, 0)
    assert not AtCheckpoints().at_checkpoint(149, 100)
    assert AtCheckpoints().at_checkpoint(150, 100)


MOMENTS = {
    "next_step": lambda schedule: schedule.next_step(-1) is not None,
    "at_epoch_end": lambda schedule: schedule.at_epoch_end(0),
    "at_checkpoint": lambda schedule: schedule.at_checkpoint(1, None),
    "at_fit_end": lambda schedule: schedule.at_fit_end(),
}


@pytest.mark.parametrize(
    ("schedule", "moment"),
    [
        (EveryNSteps(1), "next_step"),
        (LogSpacedSteps(1), "next_step"),
        (EveryNEpochs(), "at_epoch_end"),
        (AtCheckpoints(), "at_checkpoint"),
        (AtFitEnd(), "at_fit_end"),
        (Schedule(), None),
    ],
)
def test_a_schedule_is_due_at_its_own_moments_only(schedule, moment):
    assert [name for name, due in MOMENTS.items() if due(schedule)] == ([moment] if moment else [])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EveryNSteps(0), ": n must be a whole number of at least 1"),
        (lambda: EveryNSteps(1, start=-1), ": start must be a whole number of at least 0"),
        (lambda: LogSpacedSteps(0), ": per_decade must be"),
        (lambda: EveryNEpochs(0), ": n must be a whole number of at least 1"),
        (lambda: AtCheckpoints(0.5), ": min_growth must be a finite number of at least 1"),
        (lambda: AtCheckpoints(float("nan")), ": min_growth must be a finite number of at least 1"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_are_values():
    assert EveryNSteps(5) == EveryNSteps(5)
    assert len({LogSpacedSteps(4), LogSpacedSteps(4), AtFitEnd()}) == 2
