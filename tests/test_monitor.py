"""A monitor reads what training computes anyway, at the steps that are due, and leaves training bit-identical."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils._pytree import tree_leaves

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNEpochs, EveryNSteps, GradientNorms, Probe, Result, Scalar
from lightning_probes.probing import Moment, Monitor, ProbeArguments
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.kinds import GradientNorm, Spoils
from tests.resumable import begin, go_on, measured
from tests.test_undisturbed import train
from tests.tester import assert_same, fingerprint, fit
from tests.ways import WAYS


def make() -> Fit:
    return Fit(Supervised(mlp()), loader(labelled(4)))


class Reads(L.Callback):
    """What a callback of the user's own would read."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.losses: list[float] = []
        self.updates: list[float] = []
        self.before: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before = [p.detach().clone() for p in pl_module.parameters()]
        self.norms.append(float(torch.stack([p.grad.norm() for p in pl_module.parameters()]).norm()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        moved = [(p.detach() - before).norm() for p, before in zip(pl_module.parameters(), self.before, strict=False)]
        self.updates.append(float(torch.stack(moved).norm()) if moved else 0.0)


def test_it_reads_gradients_updates_and_loss_of_the_steps_that_are_due() -> None:
    monitor, reads = GradientNorm(), Reads()
    fit(make, [monitor, reads])
    assert [row["step"] for row in monitor.history] == [0, 2, 4]
    assert [row["gradients/norm"] for row in monitor.history] == pytest.approx(reads.norms[::2], rel=1e-6)
    assert [row["gradients/loss"] for row in monitor.history] == pytest.approx(reads.losses[::2], rel=1e-6)
    assert [row["gradients/update"] for row in monitor.history] == pytest.approx(reads.updates[::2], rel=1e-6)


def test_it_reads_accumulated_gradients_before_they_are_clipped_and_the_loss_as_it_was_returned() -> None:
    monitor, reads = GradientNorm(schedule=EveryNSteps(1)), Reads()
    fit(make, [monitor, reads], accumulate_grad_batches=2, gradient_clip_val=1e-3)
    assert [row["step"] for row in monitor.history] == [0, 1, 2]
    assert [row["gradients/norm"] for row in monitor.history] == pytest.approx(reads.norms, rel=1e-6)
    last = [2 * reads.losses[batch] for batch in (1, 3, 4)]  # which Lightning has divided by two
    assert [row["gradients/loss"] for row in monitor.history] == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("monitor", [GradientNorm, GradientNorms, Spoils])
def test_training_is_in_every_bit_as_without_a_monitor(monitor: Any, way: str, tmp_path: Path) -> None:
    watching = monitor(schedule=EveryNSteps(1))
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    found = WAYS[way].train([watching], tmp_path / "with")
    assert_same(found, WAYS[way].train([], tmp_path / "without"))
    assert bool(watching.history) == bool(WAYS[way].steps)


def out_of_luck(step: int) -> None:
    if step == 2:
        raise ZeroDivisionError("out of luck")


def test_one_that_fails_is_left_out_at_that_step_and_training_is_the_same(tmp_path: Path) -> None:
    failing = Spoils(out_of_luck, on_error="warn")
    with pytest.warns(UserWarning, match=r"Spoils 'spoils': failed and was left out: ZeroDivisionError: out of luck"):
        found = train([failing], tmp_path / "with")
    assert [row["step"] for row in failing.history] == [0, 1, 3, 4, 5]
    assert_same(fingerprint(found), fingerprint(train([], tmp_path / "without")))


def test_one_that_fails_ends_training_unless_it_may_only_warn() -> None:
    with pytest.raises(ZeroDivisionError, match="out of luck"):
        fit(make, [Spoils(out_of_luck)])


def test_a_resumed_run_reads_what_an_unbroken_one_does(tmp_path: Path) -> None:
    def every() -> list[Any]:
        return [GradientNorm(), Spoils(schedule=EveryNSteps(3))]

    unbroken, broken, resumed = every(), every(), every()
    go_on(tmp_path / "unbroken", None, unbroken)
    go_on(tmp_path / "broken", begin(tmp_path / "broken", broken), resumed)
    for found, expected in zip(resumed, unbroken, strict=True):
        assert len(measured(expected)) > 4
        assert measured(found) == measured(expected)


class SavesFirst(L.Callback):
    """Stands before the monitor, so it saves after a due step that the monitor has not reported."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_written_between_a_step_and_its_report_holds_the_event(tmp_path: Path) -> None:
    unbroken, resumed = GradientNorm(), GradientNorm()
    fit(make, [SavesFirst(tmp_path / "3.ckpt"), unbroken], max_epochs=2)
    fit(make, [SavesFirst(tmp_path / "again.ckpt"), resumed], max_epochs=2, ckpt_path=tmp_path / "3.ckpt")
    assert [row["step"] for row in resumed.history] == [row["step"] for row in unbroken.history] == [0, 2, 4, 6, 8]
    assert measured(resumed)[:2] == measured(unbroken)[:2]  # then the order of the data differs
    assert "gradients/update" in resumed.history[1]
    assert "gradients/loss" not in resumed.history[1]  # Lightning passes it on later


def test_the_end_of_an_epoch_and_a_checkpoint_are_read_at_the_next_step(tmp_path: Path) -> None:
    schedules = {"epochs": EveryNEpochs(1), "saves": AtCheckpoints(1.0)}
    monitors = [GradientNorm(name=name, schedule=schedule) for name, schedule in schedules.items()]

    class Saves(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "3.ckpt")

    fit(make, [*monitors, Saves()], max_epochs=2)
    assert [[row["step"] for row in each.history] for each in monitors] == [[5], [3]]


def test_the_end_of_a_fit_adds_nothing_because_no_step_follows_it() -> None:
    monitor = GradientNorm(schedule=[EveryNSteps(2), AtFitEnd()])
    fit(make, [monitor])
    assert [row["step"] for row in monitor.history] == [0, 2, 4]


@pytest.mark.parametrize("schedule", [AtFitEnd(), [AtFitEnd()]])
def test_the_end_of_a_fit_alone_is_refused(schedule: Any) -> None:
    with pytest.raises(ValueError, match="schedule must be of steps, epochs or checkpoints"):
        GradientNorm(schedule=schedule)


def test_a_monitor_and_a_probe_share_names_flags_settings_and_files(tmp_path: Path) -> None:
    monitor = GradientNorm()
    fit(make, [monitor], tmp_path, logger=CSVLogger(tmp_path, name="", version=""))
    assert monitor.settings["kind"] == "monitor"
    assert monitor.settings["probe"] == "GradientNorm"
    assert len((tmp_path / "probes" / "gradients.jsonl").read_text().splitlines()) == 3
    assert monitor.history[0].keys() >= {"gradients/seconds", "probes/overhead", "gradients/flag/nonfinite"}
    assert not isinstance(monitor, Probe)


def test_one_that_reads_nothing_reports_nothing() -> None:
    idle = Monitor(name="idle", schedule=EveryNSteps(1))
    fit(make, [idle])
    assert idle.history == []


class ByDefault(Monitor):
    """Says its defaults as a probe does."""

    defaults = ProbeArguments(name="by_default", schedule=EveryNSteps(2))

    def before_step(self, moment: Moment) -> Iterable[Result]:
        seen = self.carried.setdefault("seen", [])
        seen.append(moment.step)
        if moment.step == 2:
            raise ZeroDivisionError("out of luck")
        yield Scalar("seen", len(seen))


def test_a_monitor_has_defaults_as_a_probe_has() -> None:
    assert repr(ByDefault(seed=3)).startswith("ByDefault(schedule=EveryNSteps(n=2, ")
    assert ByDefault().name == "by_default"
    with pytest.raises(TypeError, match="Monitor needs schedule="):
        Monitor()


def test_an_event_that_fails_leaves_what_is_carried_as_it_was() -> None:
    failing = ByDefault(on_error="warn")
    with pytest.warns(UserWarning, match="out of luck"):
        fit(make, [failing])
    assert [(row["step"], row["by_default/seen"]) for row in failing.history] == [(0, 1), (4, 2)]


def test_nothing_done_to_the_state_of_any_optimizer_reaches_training() -> None:
    class Clears(Monitor):
        def after_step(self, moment: Moment) -> Iterable[Result]:
            for group in moment.optimizers:
                for state in map(dict, group.state.values()):
                    for tensor in tree_leaves(state):
                        spoil(tensor)
                    state.get("old_dirs", []).clear()
                spoil(group.options["lr"])
            return ()

    def spoil(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value.zero_()

    class Searches(Supervised):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=torch.tensor(0.1), max_iter=3)

    def searching() -> Fit:
        return Fit(Searches(mlp()), loader(labelled(4)))

    found = fit(searching, [Clears(name="clears", schedule=EveryNSteps(1))])
    assert_same(fingerprint(found), fingerprint(fit(searching)))
