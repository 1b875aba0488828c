"""Claim: training ends as without the callback, and the callback keeps no graph, view or module."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes.probing import ModelView
from lightning_probes.testing.digests import flatten
from lightning_probes.testing.fingerprint import Flat, assert_same, fingerprint, hooks
from lightning_probes.testing.fitting import Run, fit
from lightning_probes.testing.measuring import Method, put_around
from lightning_probes.testing.numbers import differences, numbers_of_history
from lightning_probes.testing.subject import Subject
from lightning_probes.testing.zoo import CASES, Case


def undisturbed(subject: Subject, case: Case) -> None:
    """It measures in a fit, training ends with the same bits as without it, and it keeps no graph and no module.

    An intervention is off meanwhile. If it refuses the case, it raises before the first step.
    """
    callback = subject.make_off(case)
    left = watch_hooks(callback)
    with TemporaryDirectory() as directory:
        run, error = _fit(case, callback, Path(directory))
        if case.name in subject.refuses:
            _check_refusal(error, run)
            return
        if error is not None:
            raise AssertionError(_blame(error, case, run)) from error
        assert_same(fingerprint(run), _without(case.name))
    assert callback.history, "it measured nothing, although it was due"
    assert not left, f"it leaves hooks on the module that it measures ({', '.join(left)}): remove them in a `finally`"
    check_nothing_kept(callback, run.module)


def repeatable(subject: Subject, case: Case) -> None:
    """Two fits from the same seeds measure the same numbers."""
    found = []
    for _ in range(2):
        callback = subject.make(case)
        with TemporaryDirectory() as directory:
            fit(case.make, [callback], Path(directory))
        found.append(numbers_of_history(callback))
    differ = differences(found[1], found[0], rel=0.0, tiny=0.0)
    assert not differ, (
        f"two fits from the same seeds measure different numbers ({differ}): draw random numbers from "
        "view.generator(...), and keep no state in the class"
    )


def check_nothing_kept(callback: Any, module: nn.Module) -> None:
    """Check that no attribute of the callback holds an autograd graph, a view or the user's module."""
    for path, value in _held(callback):
        assert not (isinstance(value, Tensor) and value.grad_fn is not None), (
            f"it keeps an autograd graph, and so the activations of a pass, in {path}: call detach() before"
        )
        assert not isinstance(value, ModelView), (
            f"it keeps the view of one measurement, and so a copy of the module, in {path}: use the view that is "
            "passed to each measurement"
        )
        assert value is not module, f"it keeps the user's module in {path}: use the view instead"


def watch_hooks(callback: Any) -> list[str]:
    """A list to which each measurement adds the hooks that it does not remove from the module."""
    left: list[str] = []

    def watched(measure: Method, view: Any) -> Any:
        module = getattr(view, "module", None)
        if module is None:
            return measure(view)
        before = dict(flatten(hooks(module)))
        results = list(measure(view))
        after = dict(flatten(hooks(module)))
        left.extend(sorted({path.split(".")[0] for path in after if after[path] != before.get(path)}))
        return results

    put_around(callback, watched)
    return left


@cache
def _without(case: str) -> Flat:
    with TemporaryDirectory() as directory:
        return fingerprint(fit(CASES[case].make, (), Path(directory)))


def _fit(case: Case, callback: Any, directory: Path) -> tuple[Run, Exception | None]:
    errors: list[Exception] = []

    def drive(trainer: Any, made: Any) -> None:
        try:
            trainer.fit(made.module, **made.arguments())
        except Exception as error:  # any error of the callback
            errors.append(error)

    run = fit(case.make, [callback], directory, drive=drive)
    return run, next(iter(errors), None)


def _check_refusal(error: Exception | None, run: Run) -> None:
    assert error is not None, "it measures this case: remove the case from refuses="
    assert isinstance(error, MisconfigurationException), (
        f"it refuses this case with {_text_of(error)}: raise a MisconfigurationException in `prepare`, with a message "
        "that names the argument to set"
    )
    steps = run.trainer.global_step
    assert not steps, f"it refuses this case after {steps} steps of training: raise in `prepare`, which runs before"


def _blame(error: Exception, case: Case, run: Run) -> str:
    if isinstance(error, MisconfigurationException) and not run.trainer.global_step:
        return f"it refuses this case ({_text_of(error)}). If that is right, pass refuses=({case.name!r},)"
    return (
        f"it failed at step {run.trainer.global_step} with {_text_of(error)}. If it can't measure this case, raise a "
        "MisconfigurationException in `prepare`, with a message that names the argument to set"
    )


def _text_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _held(value: Any, path: str = "self", depth: int = 4) -> list[tuple[str, Any]]:
    """The values in an object's attributes, and in containers there, with their paths."""
    if isinstance(value, dict):
        parts = [(f"{path}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple, set)):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    elif path == "self":
        # Attributes of the base class are listed too; the tests of this package check them.
        parts = [(f"{path}.{name}", part) for name, part in vars(value).items()]
    else:
        parts = []
    inner = [found for where, part in parts for found in _held(part, where, depth - 1)] if depth else []
    return [*parts, *inner]
