from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNEpochs, EveryNSteps, LogSpacedSteps, Schedule
from lightning_probes.probing.run.due import Due

STEPS = 24


@st.composite
def schedules(draw):
    stop = draw(st.none() | st.integers(0, STEPS))
    return draw(
        st.sampled_from(
            [
                EveryNSteps(draw(st.integers(1, 9)), draw(st.integers(0, 9)), stop),
                LogSpacedSteps(draw(st.integers(1, 12)), stop),
                EveryNEpochs(draw(st.integers(1, 3))),
                AtCheckpoints(draw(st.sampled_from([1.0, 1.5, 3.0]))),
                AtFitEnd(),
            ]
        )
    )


class Run:
    """The hooks of a fit in Lightning's order, for one probe that always succeeds.

    Args:
        schedules: When it measures.
        checkpoints: The steps after which a checkpoint is written.
        accumulate: Batches a step; every step of the logger is then seen more than once.
        epoch: Steps an epoch.
    """

    def __init__(self, schedules, checkpoints, accumulate=1, epoch=6):
        self.due = Due(schedules)
        self.checkpoints = checkpoints
        self.accumulate = accumulate
        self.epoch = epoch
        self.measured = []
        self.states = {}

    def measure(self, asked, step):
        if asked and step != self.due.last_step:
            self.due.done(step)
            self.measured.append(step)

    def go(self, start=0, end=STEPS):
        self.due.plan(start)
        idle = 0
        for step in range(start, end):
            for _ in range(self.accumulate):
                if idle:
                    idle -= 1
                    continue
                self.measure(self.due.at_step(step), step)
                idle = self.due.idle_batches(step)
            if step + 1 in self.checkpoints:
                self.states[step + 1] = (self.due.state_dict(), list(self.measured))
                self.due.checkpoint_written = True
                idle = 0
            if (step + 1) % self.epoch == 0:
                self.measure(self.due.at_epoch_end(step // self.epoch), step + 1)
        self.measure(self.due.at_fit_end(end), end)
        return self.measured


RUNS = {
    "schedules": st.lists(schedules(), min_size=1, max_size=3),
    # Not after the last step of an epoch: what comes first there is the Trainer's affair, and not of `Due`.
    "checkpoints": st.sets(st.integers(1, STEPS - 1).filter(lambda step: step % 6), min_size=1),
}


@given(**RUNS, accumulate=st.integers(1, 3))
def test_no_step_is_measured_twice_whatever_asks(schedules, checkpoints, accumulate):
    measured = Run(schedules, checkpoints, accumulate).go()
    assert all(a < b for a, b in pairwise(measured))


@given(**RUNS)
def test_every_step_that_a_schedule_names_is_measured(schedules, checkpoints):
    measured = Run(schedules, checkpoints).go()
    for schedule in schedules:
        step = schedule.next_step(-1)
        while step is not None and step < STEPS:
            assert step in measured
            step = schedule.next_step(step)


@given(**RUNS, accumulate=st.integers(1, 3))
def test_resumed_from_any_checkpoint_the_same_steps_are_measured(schedules, checkpoints, accumulate):
    unbroken = Run(schedules, checkpoints, accumulate)
    unbroken.go()
    for step, (state, before) in unbroken.states.items():
        resumed = Run(schedules, checkpoints, accumulate)
        resumed.due.load_state_dict(state)
        assert before + resumed.go(start=step) == unbroken.measured


@given(**RUNS, split=st.integers(1, STEPS - 1))
def test_a_second_fit_asks_for_the_rest(schedules, checkpoints, split):
    """Apart from what the end of the first, where a checkpoint no longer waits for the next batch, adds."""
    schedules = [schedule for schedule in schedules if not isinstance(schedule, (AtFitEnd, AtCheckpoints))]
    whole, halves = Run(schedules, checkpoints).go(), Run(schedules, checkpoints)
    halves.go(end=split)
    assert halves.go(start=split) == whole


@given(RUNS["schedules"], st.integers(0, STEPS), st.lists(st.booleans(), min_size=STEPS, max_size=STEPS))
def test_batches_that_need_not_ask_are_not_due(schedules, start, takes_a_step):
    """Whether or not each takes a step, as with gradients accumulated."""
    asking, always = Due(schedules), Due(schedules)
    asking.plan(start)
    always.plan(start)
    step, idle = start, 0
    for takes in takes_a_step:
        due = always.at_step(step)
        if idle:
            idle -= 1
            assert not due
        else:
            assert asking.at_step(step) == due
            idle = asking.idle_batches(step)
        step += takes


def test_a_checkpoint_lets_no_batch_idle():
    due = Due([AtFitEnd()])
    due.plan(0)
    assert due.idle_batches(0) > 0
    due.checkpoint_written = True
    assert due.idle_batches(0) == 0


def test_before_it_is_planned_no_batch_idles():
    assert Due([EveryNSteps(100, start=50)]).idle_batches(0) == 0


def test_a_step_that_passed_unseen_is_measured_at_the_next():
    due = Due([EveryNSteps(10, start=10)])
    due.plan(0)
    assert [step for step in (8, 12, 14, 19, 23) if due.at_step(step)] == [12, 23]


def test_a_checkpoint_that_came_with_a_due_step_is_not_asked_about_again():
    due = Due([EveryNSteps(5), AtCheckpoints(1.0)])
    due.plan(0)
    due.checkpoint_written = True
    assert due.at_step(5)
    assert not due.checkpoint_written
    assert due.state_dict()["last_checkpoint"] is None
    due.done(5)
    assert due.state_dict()["last_checkpoint"] == 5


def test_a_checkpoint_that_is_not_due_leaves_the_last_one_that_was():
    due = Due([AtCheckpoints(2.0)])
    asked = []
    for step in (4, 6, 8):
        due.checkpoint_written = True
        asked.append(due.at_checkpoint(step))
        due.done(step)
    assert asked == [True, False, True]


def test_a_checkpoint_that_no_batch_follows_is_due_at_the_end_of_the_fit():
    due = Due([AtCheckpoints()])
    assert not due.at_fit_end(5)
    due.checkpoint_written = True
    assert due.at_fit_end(5)
    assert not due.at_fit_end(5)


@pytest.mark.parametrize("moment", ["at_step", "at_epoch_end", "at_fit_end", "at_checkpoint"])
def test_without_a_rule_nothing_is_ever_due(moment):
    due = Due([Schedule()])
    due.plan(0)
    due.checkpoint_written = True
    assert not getattr(due, moment)(0)


def test_what_is_not_done_when_a_checkpoint_is_written_is_due_again():
    due, resumed = Due([EveryNSteps(5), AtCheckpoints()]), Due([EveryNSteps(5), AtCheckpoints()])
    due.plan(0)
    due.checkpoint_written = True
    assert due.at_step(5)
    resumed.load_state_dict(due.state_dict())
    resumed.plan(5)
    assert resumed.at_step(5)


@pytest.mark.parametrize(("asked", "expected"), [(0, False), (None, True)])
def test_end_of_an_epoch_that_a_checkpoint_precedes_is_due_after_it(asked, expected):
    due, resumed = Due([EveryNEpochs(1)]), Due([EveryNEpochs(1)])
    if asked is not None:
        due.at_epoch_end(asked)
    resumed.load_state_dict(due.state_dict())
    resumed.plan(5)
    assert resumed.at_step(5, epoch=1) is expected


def test_the_end_of_an_epoch_that_an_earlier_run_did_not_live_to_see_is_due_at_the_end_of_the_fit():
    due = Due([EveryNEpochs(1)])
    due.at_epoch_end(0)
    resumed = Due([EveryNEpochs(1)])
    resumed.load_state_dict(due.state_dict())
    assert [resumed.at_fit_end(12, 1), resumed.at_fit_end(12, 1), due.at_fit_end(12, 1)] == [True, False, False]
