"""An intervention changes training on purpose and says so; where it changes nothing, training is bit-identical."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger

from lightning_probes import EveryNSteps, Result, Scalar
from lightning_probes.probing import OptimizerStep
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.kinds import GradientScale, Scale
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


class Remembers(Scale):
    """Adds the gradients of all steps so far, which it keeps beside the weights."""

    def __init__(self, do: Callable[[int], object] = lambda step: None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.do = do

    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        yield from super().intervene(step)
        self.kept = {name: self.kept.get(name, 0) + gradient for name, gradient in step.gradients.items()}
        self.do(step.step)
        for name, gradient in step.gradients.items():
            gradient.copy_(self.kept[name])


def test_what_is_kept_on_the_device_is_there_in_a_resumed_run(tmp_path: Path) -> None:
    expected = go_on(tmp_path / "unbroken", None, [Remembers()])
    found = go_on(tmp_path / "broken", begin(tmp_path / "broken", [Remembers()]), [Remembers()])
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(expected), strict=True))


def test_a_failed_step_and_a_new_fit_leave_nothing_of_what_was_kept() -> None:
    seen: list[float] = []

    class Notes(Remembers):
        def intervene(self, step: OptimizerStep) -> Iterable[Result]:
            seen.append(sum(float(tensor.norm()) for tensor in self.kept.values()))
            yield from super().intervene(step)

    notes = Notes(fails, on_error="warn")  # at step 2
    with pytest.warns(UserWarning, match="failed and was left out"):
        fit(make(), [notes], max_steps=4)
    assert seen[0] == 0 < seen[1] < seen[2] == seen[3]
    fit(make(), [notes], max_steps=4)  # which warned of it once already
    assert seen[4:] == seen[:4]


class Looks(Scale):
    def prepare(self, step: OptimizerStep) -> None:
        assert not step.gradients
        with step.look() as view:
            self.loss = float(view.detached.loss({}, view.probe_set().first))

    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        with step.look() as view:
            batch = view.probe_set().first
            assert view.module.training
            view.logits(batch)[0].sum().backward()  # its own `.grad`
            yield Scalar("loss", float(view.detached.loss({}, batch)))


def test_a_look_is_at_the_module_as_it_trains_and_leaves_training_bit_identical() -> None:
    """BatchNorm takes the statistics of the batch, and keeps its running ones."""
    looks, losses = Looks(schedule=EveryNSteps(1)), list[float]()

    class Notes(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    found = fit(CASES["cnn"].make, [looks, Notes()])
    assert_same(fingerprint(found), fingerprint(fit(CASES["cnn"].make, [Notes()])))
    assert [row["scale/loss"] for row in looks.history] == pytest.approx(losses[: len(looks.history)], rel=1e-6)
    assert looks.loss == pytest.approx(losses[0], rel=1e-6)


class Refuses(Scale):
    def prepare(self, step: OptimizerStep) -> None:
        raise ValueError("name= is not to my liking")


def test_what_it_refuses_ends_the_fit_before_the_first_step_under_its_own_name() -> None:
    with pytest.raises(ValueError, match="Refuses: name= is not to my liking"):
        fit(make(), [Refuses()])


class Breaks(Scale):
    def intervene(self, step: OptimizerStep) -> Iterable[Result]:
        with step.look() as view, torch.no_grad():
            next(view.module.parameters()).add_(1.0)
        yield from super().intervene(step)


def test_a_write_to_a_weight_through_a_look_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match=r"wrote to parameter 'net.0.weight'"):
        fit(make(), [Breaks()])
