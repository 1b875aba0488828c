"""Some libraries copy the callbacks they are given: what a copy measured can be read in the user's own probe."""

from __future__ import annotations

import copy
import pickle

from lightning_probes import EveryNSteps, Probe
from tests.resumable import resumable
from tests.tester import fit, probe


def mine() -> Probe:
    return probe("sharpness", schedule=EveryNSteps(1))


def test_the_probe_that_was_copied_has_what_the_copy_measured() -> None:
    kwargs = {"callbacks": [mine()]}
    (own,) = kwargs["callbacks"]
    (ran,) = fit(resumable, **copy.deepcopy(kwargs), max_steps=3).trainer.callbacks[1:2]
    assert [row["step"] for row in own.history] == [0, 1, 2]
    assert (own.history, own.results, own.summary) == (ran.history, ran.results, ran.summary)
    assert (own.settings, own.seconds) == (ran.settings, ran.seconds)
    assert own.figure() == ran.figure()


def test_copies_of_copies_tell_the_first_and_each_has_its_own() -> None:
    own = mine()
    copies = [copy.deepcopy(own), copy.deepcopy(copy.deepcopy(own))]
    for steps, each in enumerate(copies, 2):
        assert each.history == []
        fit(resumable, [each], max_steps=steps)
        assert len(own.history) == len(each.history) == steps
    assert len(copies[0].history) == 2


def test_a_probe_that_ran_itself_keeps_its_own_measurements() -> None:
    own = mine()
    fit(resumable, [own], max_steps=2)
    fit(resumable, [copy.deepcopy(own)], max_steps=4)
    assert len(own.history) == 2


def test_a_pickled_probe_has_nothing_to_do_with_the_first() -> None:
    own = mine()
    fit(resumable, [pickle.loads(pickle.dumps(own))], max_steps=2)
    assert own.history == []
