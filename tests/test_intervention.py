"""An intervention changes training on purpose and says so; where it changes nothing, training is bit-identical."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_probes import EveryNSteps
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


def test_one_that_fails_ends_training_unless_it_may_only_warn() -> None:
    with pytest.raises(ZeroDivisionError, match="out of luck"):
        fit(make(), [GradientScale(1.0, fails)])


def test_a_resumed_run_goes_on_as_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, broken, resumed = (GradientScale(0.5, schedule=EveryNSteps(4)) for _ in range(3))
    expected = go_on(tmp_path / "unbroken", None, [unbroken])
    found = go_on(tmp_path / "broken", begin(tmp_path / "broken", [broken]), [resumed])
    assert measured(resumed) == measured(unbroken)
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(expected), strict=True))
