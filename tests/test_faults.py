"""What can go wrong inside a probe: memory, exceptions, signals. Training goes on, or ends, as it would have."""

from __future__ import annotations

import csv
import signal
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_probes import EveryNSteps, Probe
from lightning_probes.results import Result, Scalar
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, cnn, mlp
from tests.tester import BY_LOGITS, PROBES, assert_same, fingerprint, fit, probe

# -- memory ------------------------------------------------------------------------------------------------------------


class Tight(Supervised):
    """A module on a device where a probe has room for few samples; `pays` says which of its passes need the room."""

    def __init__(self, net: nn.Module, room: float, pays: Callable[[], bool] = lambda: True, **arguments: Any) -> None:
        super().__init__(net, **arguments)
        self.room = room
        self.pays = pays

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.pays() and len(x) > self.room:
            raise torch.OutOfMemoryError(f"tried to allocate {len(x)} samples")
        return super().forward(x)


def tight(room: float, net: Callable[[], nn.Module] = mlp, shape: tuple[int, ...] = (4,), **arguments: Any) -> Any:
    return lambda: Fit(Tight(net(), room, **arguments), loader(labelled(*shape)))


DIVISIBLE: list[tuple[str, dict[str, Any]]] = [
    ("fisher", {"labels": "exact"}),
    ("sharpness", {}),
    ("interpolation", {"batch_norm": "eval"}),
    ("interpolation", {}),
]


@pytest.mark.parametrize(("kind", "arguments"), DIVISIBLE)
@pytest.mark.parametrize("room", [4, 2])
def test_out_of_memory_halves_the_micro_batches_and_keeps_the_result(
    room: int, kind: str, arguments: dict[str, Any]
) -> None:
    lacking, enough = probe(kind, **arguments), probe(kind, **arguments)
    runs = [fit(tight(room), [lacking]), fit(tight(float("inf")), [enough])]
    assert any(f"micro-batches of {room} samples" in said for said in lacking.say.said)
    for row, other in zip(lacking.history, enough.history, strict=True):
        # Errors over micro-batches are over smaller ones.
        kept = {key for key in other if not key.endswith(("_se", "/seconds", "/overhead", "_residual"))}
        assert {key: row[key] for key in kept} == pytest.approx({key: other[key] for key in kept}, rel=2e-3, abs=1e-6)
    for run in runs:
        run.module.room = 0
    assert_same(*map(fingerprint, runs))


@pytest.mark.parametrize("kind", ["fisher", "sharpness"])
def test_micro_batches_are_halved_down_to_single_samples(kind: str) -> None:
    lacking = probe(kind)
    fit(tight(1, pays=torch.is_grad_enabled), [lacking])
    assert any("micro-batches of 1 samples" in said for said in lacking.say.said)
    assert len(lacking.history) == 2


@pytest.mark.parametrize("kind", ["fisher", "sharpness"])
def test_too_little_memory_for_one_sample_names_the_argument(kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"micro-batches of 1 samples.*micro_batch_size="):
        fit(tight(0, pays=torch.is_grad_enabled), [probe(kind)])


def weighted(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets, weight=torch.tensor([1.0, 5.0, 25.0]))


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("cka", tight(4)),
        ("interpolation", tight(4, cnn, (1, 8, 8))),  # re-estimates BatchNorm
        ("interpolation", tight(4, loss=weighted)),
        ("sharpness", tight(4, loss=weighted)),
    ],
)
def test_where_halving_would_change_the_result_the_error_names_the_argument(kind: str, make: Any) -> None:
    with pytest.raises(RuntimeError, match=r"on micro-batches of 8 .*would change the result: .*micro_batch_size="):
        fit(make, [probe(kind)])


class Contrasts(Tight):
    """Classifies each sample among those of its batch."""

    def loss_of(self, batch: Any) -> Tensor:
        return self.loss(self(batch[0]), torch.arange(len(batch[0])))

    def forward(self, x: Tensor) -> Tensor:
        features = super().forward(x)
        return features @ features.T


def test_fisher_information_of_in_batch_negatives_is_not_that_of_smaller_batches() -> None:
    def predict_fn(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return module(batch[0]), torch.arange(len(batch[0]))

    with pytest.raises(RuntimeError, match=r"on micro-batches of 8 .*would change the result"):
        fit(lambda: Fit(Contrasts(mlp(), 4), loader(labelled(4))), [probe("fisher", predict_fn=predict_fn)])


def test_batches_that_come_whole_are_not_halved() -> None:
    whole = DataLoader([tuple(batch) for batch in loader(labelled(4), shuffle=False)], batch_size=None)
    with pytest.raises(RuntimeError, match=r"smaller ones would not help .* data= with smaller batches or samples"):
        fit(tight(4), [probe("fisher", data=whole)])


def test_memory_that_runs_out_at_a_later_event_is_handled_there() -> None:
    class Fills(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                pl_module.room = 4

    late = probe("fisher", schedule=EveryNSteps(1))
    fit(tight(float("inf")), [Fills(), late])
    assert [row["step"] for row in late.history] == [0, 1, 2, 3, 4]
    assert any("micro-batches of 4 samples" in said for said in late.say.said)


# -- exceptions --------------------------------------------------------------------------------------------------------


class Does(Probe):
    """Does something in the middle of a measurement, at step 2."""

    def __init__(self, do: Callable[[], object], **arguments: Any) -> None:
        super().__init__(
            name="does", schedule=EveryNSteps(1), data="train", num_samples=8, micro_batch_size=8, **arguments
        )
        self.do = do

    def measure(self, view: Any) -> Iterable[Result]:
        for batch in view.batches():
            view.loss(view.params, batch)
            if view.step == 2:
                torch.rand(3)
                self.do()
        yield Scalar("number", 1.0)


def out_of_luck() -> None:
    raise ZeroDivisionError("out of luck")


def make() -> Fit:
    return Fit(Supervised(cnn()), loader(labelled(1, 8, 8)))


def logged(directory: Path, callbacks: Iterable[L.Callback], **arguments: Any) -> Any:
    directory.mkdir()
    return fit(make, list(callbacks), directory, logger=CSVLogger(directory, name="", version=""), **arguments)


def column(directory: Path, key: str) -> list[float]:
    with (directory / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_warning_names_the_probe_once_and_the_error_is_a_scalar(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"Does 'does': failed and was left out: ZeroDivisionError: out of luck"):
        run = logged(tmp_path / "run", [Does(out_of_luck, on_error="warn")])
    assert run.trainer.global_step == 5
    assert column(tmp_path / "run", "does/error") == [1.0]
    assert len(column(tmp_path / "run", "does/number")) == 4  # at the other steps it measured


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.filterwarnings("ignore:.*failed and was left out")
def test_probe_that_fails_before_the_first_step_is_left_out_and_training_is_the_same(kind: str, tmp_path: Path) -> None:
    def no_loss(*_: Any) -> Tensor:
        raise ZeroDivisionError("out of luck")

    arguments = {"predict_fn": no_loss} if kind in BY_LOGITS else {"loss_fn": no_loss}
    left_out = probe(kind, on_error="warn", **arguments)
    runs = [logged(tmp_path / name, callbacks) for name, callbacks in (("with", [left_out]), ("without", []))]
    assert left_out.history == []
    assert column(tmp_path / "with", f"{kind}/error") == [1.0]
    assert_same(*map(fingerprint, runs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_layer_is_refused_and_a_warning_trains_without_the_probe() -> None:
    def make() -> Fit:
        return Fit(Supervised(nn.Sequential(torch.jit.script(nn.Linear(4, 3)))), loader(labelled(4)))

    words = ("Sharpness: the RecursiveScriptModule at 'net.0' can't be doubled", "after training", "on_error='warn'")
    with pytest.raises(TypeError) as caught:
        fit(make, [probe("sharpness")])
    assert [word for word in words if word not in str(caught.value)] == []
    with pytest.warns(UserWarning, match="failed and was left out"):
        assert fit(make, [probe("sharpness", on_error="warn")]).trainer.global_step == 5


def test_stop_that_an_agent_throws_into_a_thread_is_no_error_of_the_probe() -> None:
    """W&B raises a bare `Exception` in the thread of a trial, wherever that is."""

    def stop() -> None:
        raise Exception

    with pytest.raises(Exception, match=r"^$"):
        fit(make, [Does(stop, on_error="warn")])


def test_error_that_stops_training_has_its_own_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        fit(make, [Does(out_of_luck)])
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "out_of_luck"


# -- signals -----------------------------------------------------------------------------------------------------------


class Sends(L.Callback):
    """Without probes, at the same moment."""

    def __init__(self, which: signal.Signals | None = None) -> None:
        self.which = which

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2 and self.which is not None:
            signal.raise_signal(self.which)


@pytest.mark.parametrize(
    ("which", "ends_in", "measured"), [(signal.SIGINT, SystemExit, 2), (signal.SIGTERM, SIGTERMException, 3)]
)
def test_signal_in_a_probe_leaves_the_module_as_it_was_and_what_was_measured_is_written(
    which: signal.Signals, ends_in: type[BaseException], measured: int, tmp_path: Path
) -> None:
    interrupted = Does(lambda: signal.raise_signal(which), on_error="warn")
    handlers = signal.getsignal(signal.SIGINT)

    found = logged(tmp_path / "probe", [Sends(), interrupted], catch=ends_in)
    signal.signal(signal.SIGINT, handlers)  # which Lightning ignores from then on
    expected = logged(tmp_path / "user", [Sends(which)], catch=ends_in)

    assert len(interrupted.history) == measured
    assert len(column(tmp_path / "probe", "does/number")) == measured
    assert len((tmp_path / "probe" / "probes" / "does.jsonl").read_text().splitlines()) == measured
    assert_same(fingerprint(found), fingerprint(expected))


def test_later_probes_of_one_process_know_nothing_of_earlier_ones() -> None:
    """As `wandb.agent(function=...)` runs its trials: each in a thread of its own."""
    import threading

    histories: list[list[dict[str, float]]] = []

    def trial() -> None:
        probes = [probe(kind) for kind in PROBES]
        fit(make, probes)
        histories.append([row for each in probes for row in each.history])

    for _ in range(2):
        thread = threading.Thread(target=trial)
        thread.start()
        thread.join()

    first, second = histories
    for row, other in zip(first, second, strict=True):
        kept = {key for key in row if not key.endswith(("/seconds", "/overhead"))}
        np.testing.assert_equal({key: row[key] for key in kept}, {key: other[key] for key in kept})
