"""The initialisation is what the first batch finds; the line is measured after whatever writes a checkpoint."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNSteps, InitInterpolation
from lightning_probes.probing.run.init_state import capture_state
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.tester import fit, probe

ALL = AtCheckpoints(min_growth=1.0)
STEPS = 5  # a batch each, one epoch


def classification() -> Fit:
    return Fit(Supervised(mlp()), loader(labelled(4)), loader(labelled(4, seed=1), shuffle=False))


def steps_measured(*callbacks: Callback, schedule: Any = ALL, **arguments: Any) -> list[int]:
    measured = probe("interpolation", num_samples=8, num_alphas=2, schedule=schedule)
    fit(classification, [measured, *callbacks], **{"enable_checkpointing": True, **arguments})
    return [int(entry["step"]) for entry in measured.history]


def saves(directory: Path, **arguments: Any) -> ModelCheckpoint:
    return ModelCheckpoint(directory, **{"save_top_k": -1, **arguments})


class Saves(Callback):
    """Writes checkpoints by hand, at the end of some steps."""

    def __init__(self, directory: Path, *steps: int, weights_only: bool = False, times: int = 1) -> None:
        self.directory, self.steps, self.weights_only, self.times = directory, steps, weights_only, times

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step in self.steps:
            for time in range(self.times):
                trainer.save_checkpoint(self.directory / f"{trainer.global_step}-{time}.ckpt", self.weights_only)


def test_once_an_epoch(tmp_path: Path) -> None:
    assert steps_measured(saves(tmp_path), max_epochs=3) == [5, 10, 15]


def test_every_few_steps(tmp_path: Path) -> None:
    assert steps_measured(saves(tmp_path, every_n_train_steps=2)) == [2, 4]


def test_by_time(tmp_path: Path) -> None:
    assert steps_measured(saves(tmp_path, train_time_interval=timedelta(microseconds=1))) == [1, 2, 3, 4, 5]


def test_on_validation_within_an_epoch(tmp_path: Path) -> None:
    assert steps_measured(saves(tmp_path, monitor="val_loss"), val_check_interval=2) == [2, 4]


@pytest.mark.parametrize("weights_only", [False, True])
def test_only_the_last_checkpoint_written_when_training_ends(tmp_path: Path, weights_only: bool) -> None:
    last = saves(tmp_path, save_last=True, save_top_k=0, save_weights_only=weights_only)
    assert steps_measured(last, max_epochs=2) == [10]


def test_last_beside_the_best(tmp_path: Path) -> None:
    assert steps_measured(saves(tmp_path, save_last=True, save_top_k=1, monitor="val_loss"), max_epochs=2) == [5, 10]


def test_weights_alone(tmp_path: Path) -> None:
    assert steps_measured(saves(tmp_path, save_weights_only=True), max_epochs=2) == [5, 10]


@pytest.mark.parametrize("weights_only", [False, True])
def test_by_hand(tmp_path: Path, weights_only: bool) -> None:
    by_hand = Saves(tmp_path, 1, 3, weights_only=weights_only)
    assert steps_measured(by_hand, enable_checkpointing=False) == [1, 3]


def test_several_writers_of_one_step_count_once(tmp_path: Path) -> None:
    writers = [saves(tmp_path / "a", every_n_train_steps=2, save_last=True), Saves(tmp_path, 2, 4, times=2)]
    assert steps_measured(*writers) == [2, 4]


def test_checkpoint_at_the_last_step_and_fit_end_count_once(tmp_path: Path) -> None:
    assert steps_measured(saves(tmp_path), schedule=[ALL, AtFitEnd()]) == [5]


def test_fit_end_without_any_checkpoint() -> None:
    assert steps_measured(schedule=AtFitEnd(), max_steps=3) == [3]


def test_by_default_the_first_checkpoint_those_that_have_grown_and_the_end(tmp_path: Path) -> None:
    measured = InitInterpolation(num_alphas=2, num_samples=8, micro_batch_size=8)

    fit(classification, [measured, saves(tmp_path, every_n_train_steps=1)], enable_checkpointing=True, max_epochs=2)

    assert [entry["step"] for entry in measured.history] == [1, 2, 3, 5, 8, 10]


def test_checkpoints_that_the_trainer_writes_of_its_own_accord() -> None:
    assert steps_measured() == [STEPS]


def test_no_checkpoint_no_measurement() -> None:
    assert steps_measured(enable_checkpointing=False) == []


def test_measurement_is_of_the_weights_that_were_saved(tmp_path: Path) -> None:
    measured = probe("interpolation", num_samples=8, schedule=ALL)
    run = fit(classification, [measured, Saves(tmp_path, 3)])

    (entry,) = measured.history
    saved = torch.load(tmp_path / "3-0.ckpt", weights_only=True)["state_dict"]
    initial = measured.progress.log.initial
    assert initial is not None
    moved = torch.cat([(saved[name] - initial[name]).flatten() for name in saved]).norm()
    assert entry["interpolation/distance"] == pytest.approx(float(moved), rel=1e-6)
    assert run.trainer.global_step == STEPS


# -- the initialisation ------------------------------------------------------------------------------------------------


class EditsItself(Supervised):
    """Rewrites its weights as late as `on_train_start`, as data-dependent initialisations do."""

    def on_train_start(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.1)


def test_initialisation_is_captured_at_the_first_batch() -> None:
    measured = probe("interpolation", num_samples=8, schedule=AtFitEnd())
    run = fit(lambda: Fit(EditsItself(mlp()), loader(labelled(4))), [measured])

    moved = torch.cat([(parameter.detach() - 0.1).flatten() for parameter in run.module.parameters()]).norm()
    assert measured.history[-1]["interpolation/distance"] == pytest.approx(float(moved), rel=1e-6)


def test_configured_late_the_model_is_captured_all_the_same() -> None:
    class Late(Supervised):
        def __init__(self) -> None:
            super().__init__(torch.nn.Identity())

        def configure_model(self) -> None:
            if isinstance(self.net, torch.nn.Identity):
                self.net = mlp()

    measured = probe("interpolation", num_samples=8, schedule=[EveryNSteps(1, stop=0), AtFitEnd()])
    fit(lambda: Fit(Late(), loader(labelled(4))), [measured])

    first, last = measured.history
    assert first["interpolation/distance"] == 0
    assert last["interpolation/distance"] > 0


def test_untouched_initialisation_has_a_flat_line() -> None:
    measured = probe("interpolation", num_samples=8, schedule=EveryNSteps(1, stop=0))
    fit(classification, [measured])

    losses = measured.results["interpolation/loss"].y  # type: ignore[union-attr]
    assert losses == pytest.approx([losses[0]] * 4)
    assert measured.history[0]["interpolation/max_rise"] == pytest.approx(0, abs=1e-7)
    assert measured.history[0]["interpolation/distance_normalized"] == 0


def test_given_initialisation_is_taken_instead(tmp_path: Path) -> None:
    other = classification().module
    torch.save({"state_dict": other.state_dict()}, tmp_path / "init.ckpt")
    expected = capture_state(other)
    measured = probe("interpolation", num_samples=8, schedule=AtFitEnd(), init_state=tmp_path / "init.ckpt")

    run = fit(classification, [measured])

    moved = torch.cat([(p.detach() - expected[name]).flatten() for name, p in run.module.named_parameters()]).norm()
    assert measured.history[-1]["interpolation/distance"] == pytest.approx(float(moved), rel=1e-6)


def test_initialisation_given_to_one_probe_is_not_that_of_another() -> None:
    other = {name: 2 * tensor for name, tensor in classification().module.state_dict().items()}
    given = probe("interpolation", num_samples=8, schedule=AtFitEnd(), name="given", init_state=other)
    captured = [probe("interpolation", num_samples=8, schedule=AtFitEnd(), name=name) for name in ("one", "two")]

    fit(classification, [given, *captured])

    start = {name: 2 * tensor for name, tensor in captured[0].progress.log.initial.items()}  # type: ignore[union-attr]
    assert start.keys() == other.keys()
    assert captured[1].progress.log.initial is captured[0].progress.log.initial  # one copy of the weights serves both
    assert captured[0].history[-1]["one/distance"] == captured[1].history[-1]["two/distance"]
    assert given.history[-1]["given/distance"] > 2 * captured[0].history[-1]["one/distance"]


def test_second_fit_continues_from_the_first_initialisation(tmp_path: Path) -> None:
    """`fit` again on the same Trainer goes on at its step: the start that was seen stays the start."""
    measured = probe("interpolation", num_samples=8, schedule=AtFitEnd())
    run = fit(classification, [measured])
    first = dict(measured.history[-1])
    run.trainer.fit_loop.max_epochs = 2
    run.trainer.fit(run.module, **run.fit.arguments())

    assert [entry["step"] for entry in measured.history] == [5, 10]
    assert measured.history[0] == first
    assert measured.history[1]["interpolation/distance"] > first["interpolation/distance"]


def test_new_fit_from_step_zero_starts_anew() -> None:
    measured = probe("interpolation", num_samples=8, schedule=AtFitEnd())
    fit(classification, [measured])
    once = dict(measured.history[0])
    fit(classification, [measured])

    same = [key for key in once if "seconds" not in key and "overhead" not in key]
    assert len(measured.history) == 1
    assert {key: measured.history[0][key] for key in same} == {key: once[key] for key in same}
