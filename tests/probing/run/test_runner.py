"""A module by itself is measured in the same way as one in a fit."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_probes
from lightning_probes import EveryNSteps, Probe
from lightning_probes.results import Scalar
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, mlp
from tests.tester import fit, probe

PACKAGE = Path(lightning_probes.__file__).parent


def tight(room: int, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of the user's that runs out of memory on more samples than there is room for."""

    def compute(module: Any, batch: Any) -> Any:
        if len(batch[0]) > room:
            raise torch.OutOfMemoryError(f"tried to allocate {len(batch[0])} samples")
        return function(module, batch)

    return compute


def loss(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def summed(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="sum")


def predictions(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return module(batch[0]), batch[1]


TIGHT: dict[str, tuple[str, dict[str, Any], Callable[[Any, Any], Any]]] = {
    "loss_fn": ("sharpness", {}, loss),
    "predict_fn": ("fisher", {"labels": "exact"}, predictions),
}


@pytest.mark.parametrize("room", [4, 2])
@pytest.mark.parametrize("argument", TIGHT)
def test_evaluate_halves_micro_batches_when_memory_runs_out(argument: str, room: int) -> None:
    kind, arguments, function = TIGHT[argument]
    module = Supervised(mlp())
    lacking = probe(kind, **arguments, **{argument: tight(room, function)})

    found = lacking.evaluate(module, loader(labelled(4)))
    expected = probe(kind, **arguments, **{argument: function}).evaluate(module, loader(labelled(4)))

    assert any(f"micro-batches of {room} samples" in said for said in lacking.say.said)
    for key, result in expected.items():
        if isinstance(result, Scalar) and not key.endswith("_residual"):
            assert found[key].value == pytest.approx(result.value, rel=2e-3)  # type: ignore[union-attr]


def test_evaluate_asks_for_micro_batch_size_if_halving_would_change_the_result() -> None:
    with pytest.raises(RuntimeError, match=r"on micro-batches of 8 .*would change the result: .*micro_batch_size="):
        probe("sharpness", loss_fn=tight(4, summed)).evaluate(Supervised(mlp()), loader(labelled(4)))


def test_evaluate_reports_less_data_than_was_asked_for() -> None:
    asking = probe("fisher", num_samples=1000)
    asking.evaluate(Supervised(mlp()), loader(labelled(4)))
    assert "train data has 40 samples of the 1000 asked for" in asking.say.said


class Carries(Probe):
    """Leaves something to the next measurement before it runs out of memory."""

    def measure(self, view: Any) -> Iterator[Scalar]:
        self.carried["attempts"] = self.carried.get("attempts", 0) + 1
        if max(view.probe_set().sizes) > 4:
            raise torch.OutOfMemoryError("tried to allocate a lot")
        yield Scalar("attempts", self.carried["attempts"])

    def divisible(self, pairs: Any, singles: Any) -> bool:
        return True


def test_an_attempt_that_ran_out_of_memory_leaves_nothing_to_the_next_one() -> None:
    made = Carries(name="carries", schedule=EveryNSteps(1, stop=0), data="train", num_samples=16)
    fit(lambda: Fit(Supervised(mlp()), loader(labelled(4))), [made])
    alone = made.evaluate(Supervised(mlp()), loader(labelled(4)))
    assert made.history[0]["carries/attempts"] == alone["carries/attempts"].value == 1  # type: ignore[union-attr]


# -- who knows a Trainer -----------------------------------------------------------------------------------------------

KNOW_A_TRAINER = ("probing/run/", "probing/isolation/")
DRIVE_A_TRAINER = ("testing/", "replay.py", "cli.py")


def attributes_of_a_trainer(source: str) -> list[str]:
    """What a module reads of something called a trainer."""
    found = []
    for node in ast.walk(ast.parse(source)):
        read = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "vars"):
            read = node.args[0]
        if read is not None and ast.unparse(read).rpartition(".")[2].strip("_") == "trainer":
            found.append(ast.unparse(node))
    return found


def test_only_the_room_of_runs_reads_anything_of_a_trainer() -> None:
    modules = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    reading = {name: found for name, source in modules.items() if (found := attributes_of_a_trainer(source))}
    assert any(name.startswith(KNOW_A_TRAINER) for name in reading)
    assert {
        name: found for name, found in reading.items() if not name.startswith(KNOW_A_TRAINER + DRIVE_A_TRAINER)
    } == {}


def test_reading_a_trainer_is_seen_however_it_is_kept() -> None:
    assert attributes_of_a_trainer("step = view.trainer.global_step") == ["view.trainer.global_step"]
    assert attributes_of_a_trainer("step = self._trainer.global_step") == ["self._trainer.global_step"]
    assert attributes_of_a_trainer("getattr(trainer, name)") == ["getattr(trainer, name)"]
