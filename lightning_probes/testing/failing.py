"""Claim: an error in a measurement reaches the user or becomes a warning, and does not affect training."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L

from lightning_probes.testing.digests import flatten
from lightning_probes.testing.fingerprint import assert_same, fingerprint, state_of
from lightning_probes.testing.fitting import fit
from lightning_probes.testing.measuring import Method, methods_of, put_around
from lightning_probes.testing.subject import Subject
from lightning_probes.testing.zoo import Case

FAILS_AT = 2


class InjectedError(Exception):
    """The error that the check raises inside a measurement."""


def failing(subject: Subject, case: Case) -> None:
    """With `on_error="warn"` training continues unchanged after an error in a measurement; else the error is raised."""
    _warns(subject, case, subject.make_off(case, on_error="warn"))
    if subject.intervenes:
        _warns(subject, case, subject.make(case, on_error="warn"), always=True)
    _raises(subject, case)


def _warns(subject: Subject, case: Case, callback: Any, always: bool = False) -> None:
    break_at(callback, FAILS_AT, always)
    with TemporaryDirectory() as one, TemporaryDirectory() as two, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = fingerprint(fit(case.make, [callback], Path(one)))
        expected = fingerprint(fit(case.make, (), Path(two)))
    try:
        assert_same(found, expected)
    except AssertionError as error:
        raise AssertionError(f"after an error in a measurement, with on_error='warn', {error}") from None
    assert any("failed and was left out" in str(each.message) for each in said), (
        "with on_error='warn' an error in a measurement did not become a warning: do not catch it in the callback"
    )
    steps = [int(row["step"]) for row in callback.history]
    assert always or [step for step in steps if step > FAILS_AT] == steps != [], (
        f"after a measurement that failed at step {FAILS_AT}, its history should have the later steps, but it has "
        f"{steps}: a failed measurement must not leave a state that makes the next one fail"
    )


def _raises(subject: Subject, case: Case) -> None:
    callback = subject.make_off(case, on_error="raise")
    break_at(callback, FAILS_AT)
    caught: list[BaseException] = []

    def drive(trainer: Any, made: Any) -> None:
        try:
            trainer.fit(made.module, **made.arguments())
        except Exception as error:
            caught.append(error)

    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        run = fit(case.make, [callback], Path(one), drive=drive)
        stopped = fit(case.make, [_Stops(methods_of(callback)[0])], Path(two), catch=InjectedError)
    assert caught, "with on_error='raise' an error in a measurement did not reach the user: do not catch it"
    assert _stems_from_ours(caught[0]), (
        f"the error that reaches the user, {type(caught[0]).__name__}: {caught[0]}, is neither the error of the "
        "measurement nor raised from it"
    )
    found, expected = (dict(flatten(state_of(each.module))) for each in (run, stopped))
    try:
        assert_same(found, expected)
    except AssertionError as error:
        raise AssertionError(f"after an error in a measurement that ends the fit, {error}") from None


def break_at(callback: Any, step: int, always: bool = False) -> None:
    """Make the measurement at a step fail, or every one: in its first pass over the model, or at its end.

    That is after an intervention has done its work.
    """

    def fails(measure: Method, view: Any) -> Any:
        if view.step != step and not always:
            return measure(view)
        module = getattr(view, "module", None) if hasattr(view, "probe_set") else None
        swallowed: list[bool] = []

        def fail(*_: Any) -> None:
            swallowed.append(True)
            raise InjectedError("injected by the check")

        hooked = None if module is None else module.register_forward_pre_hook(fail)
        results = list(measure(view))
        if hooked is not None:
            hooked.remove()
        if swallowed:  # the callback caught the error, which the checks will notice
            return results
        raise InjectedError("injected by the check")

    put_around(callback, fails)


def _stems_from_ours(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, InjectedError) or InjectedError.__name__ in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Stops(L.Callback):
    """Ends a fit without the callback, at the moment when the callback's method would run."""

    def __init__(self, method: str) -> None:
        self.method = method

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._stop(trainer.global_step, "measure")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._stop(trainer.global_step, "before_step", "intervene")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop(trainer.global_step - 1, "after_step")

    def _stop(self, step: int, *methods: str) -> None:
        if step == FAILS_AT and self.method in methods:
            raise InjectedError
