"""`check_probe` passes a probe that keeps the promises, and says of others which one they break."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_probes.testing import Check, cases, check_probe
from lightning_probes.testing import processes as two_processes
from tests.kinds import GradientNorm, Scale
from tests.tester import EVERY, REFUSES, SMALL
from tests.testing import interventions, probes

ROOT = Path(__file__).parents[2]


def check_of(kind: Any, name: str, **arguments: Any) -> Check:
    (check,) = (check for check in cases(kind, **arguments) if check.__name__ == name)
    return check


BAD = [
    (probes.WritesToParameters, "undisturbed-list_batch", "failed at step 2 with .*wrote to parameter"),
    (probes.WritesToTheModule, "undisturbed-list_batch", r"training was disturbed:\n.*parameters.net.0.weight"),
    (probes.DrawsFromTheTraining, "undisturbed-list_batch", "training was disturbed:\n.*generators"),
    (probes.HooksTheModule, "undisturbed-list_batch", "training was disturbed:\n.*hooks"),
    (
        probes.MeasuresWithTheGlobalGenerator,
        "resumed-cnn",
        r"noise at step 9 is 0\.\d+, but should be .*view.generator",
    ),
    (probes.ForgetsAtABreak, "resumed-cnn", "count at step 9 is 1, but should be 4;.*self.carried"),
    (probes.CountsInTheClass, "repeatable-cnn", "count at step 2 is 3, but should be 1;.*in the class"),
    (
        probes.FailsWithARawError,
        "undisturbed-nested_tuples",
        "failed at step 0 with AssertionError: no tensor.*`prepare`",
    ),
    (probes.KeepsAGraph, "undisturbed-list_batch", r"keeps an autograd graph.* in self.last\[0\]: call detach"),
    (probes.KeepsTheView, "undisturbed-list_batch", r"keeps the view of one measurement.* in self.last"),
    (probes.LeavesAHook, "undisturbed-list_batch", "leaves hooks on the module that it measures .*finally"),
    (probes.TwoOfOneKey, "undisturbed-list_batch", "have the key 'loss'"),
    (probes.SwallowsErrors, "failing-cnn", "did not become a warning"),
    (probes.BreaksForGood, "failing-cnn", r"its history should have the later steps, but it has \[\]"),
    (probes.TakesAnyFactor, "refusing-cnn", r"factor=object\(\) raises no error"),
    (probes.Cheaper, "declaring-cnn", "an event took 1 forward passes over its samples, but its price declares 0"),
    (probes.SaysNoPrice, "declaring-cnn", "it declares no price: set .*`price"),
    (probes.WithoutReadings, "declaring-cnn", "'loss' has no reading: add readings"),
    (probes.WithAFlag, "declaring-cnn", "'flag/large' has no reading: add readings"),
    (probes.RefusesSequences, "undisturbed-lstm", r"it refuses this case .*pass refuses=\('lstm',\)"),
]


@pytest.mark.parametrize(("kind", "name", "sentence"), BAD, ids=[kind.__name__ for kind, *_ in BAD])
def test_a_broken_promise_is_found_and_named(kind: Any, name: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)^{kind.__name__}, {name.split('-')[0]}, case '.*{sentence}"):
        check_of(kind, name)()


def test_numbers_of_one_process_are_found_in_a_probe_that_sums_over_its_own_share() -> None:
    with pytest.raises(AssertionError, match=r"at step 0 process 1 measures other numbers than process 0: loss is"):
        check_of(probes.OwnShareOnly, "processes-cnn")()


OFF: dict[str, Any] = {"coefficient": 0.5, "off": {"coefficient": 1.0}}
BAD_INTERVENTIONS = [
    (interventions.NeverQuiteOff, "undisturbed-list_batch", "training was disturbed:\n.*gradients"),
    (interventions.ChangesNothing, "changing-cnn", "it changes no weight with these arguments"),
    (interventions.ForgetsWhenItBegan, "resumed-cnn", "trains to other weights than a run in one piece.*self.carried"),
    (interventions.WritesToWeights, "failing-cnn", "training was disturbed:\n.*parameters"),
    (interventions.PassesForNothing, "declaring-cnn", "took 1 forward passes over its samples, .* declares 0"),
    (interventions.DiffersByProcess, "processes-cnn", "process 1 trains to other weights than process 0"),
]


@pytest.mark.parametrize(
    ("kind", "name", "sentence"), BAD_INTERVENTIONS, ids=[each[0].__name__ for each in BAD_INTERVENTIONS]
)
def test_a_promise_that_an_intervention_breaks_is_found_and_named(kind: Any, name: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)^{kind.__name__}, {name.split('-')[0]}, case '.*{sentence}"):
        check_of(kind, name, **OFF)()


@pytest.mark.parametrize(
    "check",
    [
        *(check for check in cases(Scale, **OFF) if check.claim.__name__ != "undisturbed"),
        check_of(Scale, "undisturbed-gan", **OFF),
        check_of(Scale, "undisturbed-list_batch", coefficient=3.0, off={"coefficient": 1}),
        check_of(interventions.PassesForItsPrice, "declaring-cnn", **OFF),
    ],
)
def test_an_intervention_that_keeps_the_promises_passes(check: Check) -> None:
    check()


def test_an_intervention_without_off_and_an_off_without_an_intervention_are_refused() -> None:
    with pytest.raises(ValueError, match="off: Scale changes training: say with which arguments it does not"):
        cases(Scale)
    with pytest.raises(ValueError, match="off: MeanLoss is no intervention and never changes training"):
        cases(probes.MeanLoss, off={"factor": 1.0})
    with pytest.raises(ValueError, match="off: Scale takes no 'coeficient'; it takes coefficient, schedule"):
        cases(Scale, off={"coeficient": 1.0})


def test_a_monitor_has_in_two_processes_the_numbers_of_one_with_the_batches_of_both() -> None:
    check_of(GradientNorm, "processes-cnn")()
    with pytest.raises(AssertionError, match="two processes measure other numbers than one at step 0: norm is"):
        check_of(interventions.SumsNorms, "processes-cnn")()


def test_processes_that_wait_for_each_other_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_processes, "SECONDS", 45)
    with pytest.raises(AssertionError, match=r"did not finish within 45 s.*exchange|failed: .*"):
        check_of(probes.OnlyTheFirstExchanges, "processes-cnn")()


def test_a_class_inside_a_function_is_refused_by_what_helps() -> None:
    class Local(probes.MeanLoss):
        pass

    with pytest.raises(AssertionError, match="top level of a module or test file"):
        check_of(Local, "processes-cnn")()


def test_a_function_inside_a_function_can_not_be_given_to_processes() -> None:
    with pytest.raises(AssertionError, match="functions among them must be at the top"):
        check_of(probes.MeanLoss, "processes-cnn", loss_fn=lambda module, batch: module(batch[0]).mean())()


@pytest.mark.slow
def test_a_probe_that_keeps_the_promises_passes_on_every_case() -> None:
    check_probe(probes.MeanLoss, factor=2.0)


def test_a_refusal_by_name_passes_where_it_is_expected_and_a_case_that_is_measured_does_not() -> None:
    check_of(probes.RefusesSequences, "undisturbed-lstm", refuses="lstm")()
    with pytest.raises(AssertionError, match="it measures this case: remove the case from refuses="):
        check_of(probes.MeanLoss, "undisturbed-lstm", refuses="lstm")()


def test_all_failures_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_probes.testing import checks

    def fails(subject: Any, case: Any) -> None:
        raise AssertionError("no")

    monkeypatch.setattr(checks, "undisturbed", fails)
    monkeypatch.setattr(checks, "_CLAIMS", ())
    with pytest.raises(AssertionError, match=r"^\d\d checks failed:\nMeanLoss, fails, case 'tuple_batch': no\n"):
        check_probe(probes.MeanLoss)


def test_unknown_case_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no case 'lstn'; the cases are tuple_batch"):
        cases(probes.MeanLoss, refuses=("lstn",))


OWN = [
    pytest.param(check, id=f"{kind}-{check.__name__}")
    for kind, probe in EVERY.items()
    for check in cases(probe, refuses=REFUSES.get(kind, ()), **SMALL.get(kind, {}))
    # Of those that are measured, tests/test_zoo.py looks at the numbers as well.
    if check.claim.__name__ != "undisturbed" or check.case.name in check.subject.refuses
]


@pytest.mark.parametrize("check", OWN)
def test_the_probes_of_this_package_pass(check: Check) -> None:
    check()


STRANGERS_TEST = """
import pytest
from lightning_probes import EveryNSteps, Scalar
from lightning_probes.probing import Price, Probe, ProbeArguments, check_loss
from lightning_probes.testing import cases


class Loss(Probe):
    price = (Price(forward=1),)
    defaults = ProbeArguments(name="loss", schedule=EveryNSteps(1))

    def prepare(self, view):
        check_loss(view)

    def measure(self, view):
        yield Scalar("loss", float(view.mean_loss(view.params)))


@pytest.mark.parametrize("check", cases(Loss))
def test_loss(check):
    check()
"""


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_a_test_file_outside_the_project_needs_only_the_package(mode: str, tmp_path: Path) -> None:
    (tmp_path / "test_loss.py").write_text(STRANGERS_TEST)
    which = "processes or list_batch or refusing"
    arguments = ["-q", "-p", "no:cacheprovider", f"--import-mode={mode}", "-k", which, "test_loss.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "3 passed" in run.stdout, run.stdout


def test_testing_needs_no_pytest_and_nothing_of_the_tests() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import lightning_probes.testing; "
        "print([name for name in sys.modules if name == 'tests' or name.startswith('tests.')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_cases_of_a_package_that_is_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = runpy.run_path(str(ROOT / "lightning_probes" / "testing" / "zoo" / "cases.py"), run_name="again")
    assert names["EVERY_CASE"].keys() - names["CASES"].keys() == {"bert", "vit", "gpt2"}


def test_importing_the_package_does_not_import_its_tester() -> None:
    code = (
        "import sys, lightning_probes; print([name for name in sys.modules if 'testing' in name and 'probes' in name])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
