"""What the shared tester asks of every callback, of `ModeConnectivity` with arguments that make other passes."""

from __future__ import annotations

import pytest

from lightning_probes import AtFitEnd
from lightning_probes.testing import Check, cases
from tests.callbacks.paths.sibling import ToSibling

EVERYTHING = {"align": "activations", "repair": True, "cross": True}


@pytest.mark.parametrize(
    "check", [each for each in cases(ToSibling, **EVERYTHING) if each.case.name in ("cnn", "lstm")]
)
def test_with_matched_units_repaired_and_crossed_it_keeps_its_promises(check: Check) -> None:
    check()


PATH = {"path": "string", "path_steps": 10, "align": "weights", "schedule": AtFitEnd()}


# Not in two processes: those are compared before the first step, and a path is found at the end.
@pytest.mark.parametrize("check", [each for each in cases(ToSibling, **PATH) if each.__name__ == "undisturbed-cnn"])
def test_with_a_path_training_is_undisturbed_too(check: Check) -> None:
    check()
