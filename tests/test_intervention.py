"""An intervention changes training on purpose and says so; where it changes nothing, training is bit-identical."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_probes import EveryNSteps, Result
from lightning_probes.probing import OptimizerStep
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.kinds import GradientScale
from tests.resumable import begin, go_on, measured
from tests.test_undisturbed import train
from tests.tester import assert_same, fingerprint, fit


def make(lr: float = 0.1) -> Any:
    return lambda: Fit(Supervised(mlp(), lr=lr), loader(labelled(4)))


def weights(run: Any) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in run.module.parameters()]


def test_one_that_changes_nothing_leaves_training_bit_identical(tmp_path: Path) -> None:
    found = train([GradientScale(1.0)], tmp_path / "with")
    assert_same(fingerprint(found), fingerprint(train([], tmp_path / "without")))


def test_half_the_gradient_is_half_the_learning_rate_at_every_step_and_is_reported_on_schedule() -> None:
    scale = GradientScale(0.5)
    found, expected, other = fit(make(), [scale]), fit(make(0.05)), fit(make())
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(expected), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(found), weights(other), strict=True))
    assert [(row["step"], row["scale/steps"]) for row in scale.history] == [(0, 1), (2, 3), (4, 5)]


def test_it_says_that_it_changes_training(tmp_path: Path) -> None:
    scale = GradientScale(0.5)
    fit(make(), [scale], tmp_path, logger=CSVLogger(tmp_path, name="", version=""))
    assert "changes training on purpose" in scale.say.said
    assert scale.settings["kind"] == "intervention"
    assert scale.settings["changes_training"] is True
    assert scale.settings["coefficient"] == 0.5


def fails(step: int) -> None:
    if step == 2:
        raise ZeroDivisionError("out of luck")


def test_one_that_fails_leaves_the_gradients_of_that_step_as_they_were(tmp_path: Path) -> None:
    """Half of what it did was done already."""
    with pytest.warns(UserWarning, match="failed and was left out: ZeroDivisionError: out of luck"):
        found = fit(
            make(),
            [GradientScale(1.0, fails, on_error="warn"), GradientScale(0.0, always, name="other", on_error="warn")],
        )
    assert_same(fingerprint(found), fingerprint(fit(make())))


def always(step: int) -> None:
    raise ZeroDivisionError("out of luck")


class Replaces(GradientScale):
    """Gives a parameter another gradient, and fails."""

    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        for parameter in step.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        yield from super().intervene(step)


class Assigns(GradientScale):
    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        step.gradients["net.0.weight"] = torch.zeros(1)  # type: ignore[index]
        yield from super().intervene(step)


def test_gradients_that_were_replaced_by_one_that_fails_are_put_back() -> None:
    with pytest.warns(UserWarning, match="failed and was left out"):
        found = fit(make(), [Replaces(1.0, always, on_error="warn")])
    assert_same(fingerprint(found), fingerprint(fit(make())))


def test_a_gradient_is_changed_in_place_and_an_assignment_without_effect_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Assigns: .* does not support item assignment"):
        fit(make(), [Assigns(1.0)])


def test_one_that_reports_nothing_says_so() -> None:
    class Silent(GradientScale):
        def intervene(self, step: OptimizerStep) -> Iterable[Result]:
            return None  # type: ignore[return-value]

    with pytest.raises(
        TypeError, match=r"Silent: it must return or yield results such as .*, or \(\) for none, got None"
    ):
        fit(make(), [Silent(1.0)])


def test_a_fit_that_ended_in_the_middle_of_a_step_leaves_nothing_of_it_behind() -> None:
    class Ends(L.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            copies.extend([pickle.loads(pickle.dumps(scale)), copy.deepcopy(scale)])
            raise KeyError("ends")

    scale, copies = GradientScale(0.5, fails), list[Any]()
    with pytest.raises(KeyError, match="ends"):
        fit(make(), [scale, Ends()])
    for each in (scale, *copies):
        assert (each._taken, each._batch, each._unwatch) == (None, None, None)


def test_one_that_fails_ends_training_unless_it_may_only_warn() -> None:
    with pytest.raises(ZeroDivisionError, match="out of luck"):
        fit(make(), [GradientScale(1.0, fails)])


def test_a_resumed_run_goes_on_as_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, broken, resumed = (GradientScale(0.5, schedule=EveryNSteps(4)) for _ in range(3))
    expected = go_on(tmp_path / "unbroken", None, [unbroken])
    found = go_on(tmp_path / "broken", begin(tmp_path / "broken", [broken]), [resumed])
    assert measured(resumed) == measured(unbroken)
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(expected), strict=True))
