"""What can't work is refused before any training, and what is in a folder is not overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from tests.studies.trained import STEPS, Net, make_data, make_trainer, study


def fixed(seed: int) -> DataLoader[Any]:
    return make_data(3)


DRAWN = torch.Generator().manual_seed(0)


def other_each_time(seed: int) -> DataLoader[Any]:
    return make_data(int(torch.randint(2**31, (1,), generator=DRAWN)))


def other_weights() -> Net:
    module = Net()
    torch.nn.init.normal_(module.layers[0].weight, generator=DRAWN)
    return module


MODULE, TRAINER, CALLBACK = Net(), make_trainer(), Callback()

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "steps out of order": ({"spawn_steps": (4, 0)}, ValueError, "in increasing order"),
    "a step twice": ({"spawn_steps": (4, 4)}, ValueError, "in increasing order"),
    "no steps": ({"spawn_steps": ()}, ValueError, "in increasing order"),
    "a negative step": ({"spawn_steps": (-1, 4)}, ValueError, "in increasing order"),
    "half a step": ({"spawn_steps": (0.5,)}, ValueError, "in increasing order"),
    "a step behind the end": ({"spawn_steps": (0, 400)}, ValueError, "which is at step 18"),
    "the last step": ({"spawn_steps": (0, STEPS)}, ValueError, "which is at step 18"),
    "one child": ({"children": 1}, ValueError, "children must be a whole number of at least 2"),
    "no process": ({"processes": 0}, ValueError, "processes must be"),
    "a fixed order": ({"make_data": fixed}, MisconfigurationException, r"make_data\(1\) and make_data\(2\) give"),
    "an order by chance": ({"make_data": other_each_time}, MisconfigurationException, "other batches at each call"),
    "weights by chance": ({"make_module": other_weights}, MisconfigurationException, "other weights at each call"),
    "one module": ({"make_module": lambda: MODULE}, MisconfigurationException, "make_module gives the same Net"),
    "one Trainer": ({"make_trainer": lambda: TRAINER}, MisconfigurationException, "gives the same Trainer"),
    "one callback": (
        {"make_trainer": lambda: make_trainer(CALLBACK)}, MisconfigurationException, "gives the same Callback",
    ),
    "two devices": (
        {"make_trainer": lambda: Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)},
        MisconfigurationException, "Trainers of one process each, got one of 2",
    ),
    "an argument of connectivity": ({"connectivity": {"num_alphas": 1}}, ValueError, "num_alphas must be"),
    "the study's own argument": ({"connectivity": {"other": Net()}}, ValueError, "leave out 'other'"),
    "functions of no module": (
        {"processes": 2, "make_trainer": lambda: make_trainer()}, ValueError, "make_trainer can't be passed to another",
    ),
    "no batch": (
        {"make_trainer": lambda: make_trainer(limit_train_batches=0)}, MisconfigurationException, "no training batch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_before_any_training(what: str, tmp_path: Path) -> None:
    options, kind, words = REFUSED[what]
    made = options.pop("make_trainer", make_trainer)
    options = {**options, "make_trainer": made}
    with pytest.raises(kind, match=words):
        study(tmp_path / "study", **options)
    assert not (tmp_path / "study").exists()


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_module_whose_loss_cannot_be_replayed_is_refused_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="loss_fn="):
        study(tmp_path / "study", make_module=Manual)
    assert not (tmp_path / "study").exists()


class Stops(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step >= 5


def test_training_that_ends_before_a_spawn_step_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="training ended at step 5, before step 12 of spawn_steps"):
        study(tmp_path / "study", make_trainer=lambda: make_trainer(Stops()))


class TwoSteps(Net):
    """Takes two optimizer steps for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()


def test_step_that_is_passed_over_is_told(tmp_path: Path) -> None:
    loss = {"loss_fn": lambda module, batch: torch.nn.functional.cross_entropy(module(batch[0]), batch[1])}
    with pytest.raises(RuntimeError, match=r"passes over step 3 of spawn_steps.*such as 4"):
        study(tmp_path / "study", make_module=TwoSteps, spawn_steps=(3,), connectivity=loss)


class Faster(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "other steps": ({"spawn_steps": (4, 5)}, "spawn_steps is [4] there and [4, 5] here"),
    "more children": ({"children": 3}, "children is 2 there and 3 here"),
    "another seed": ({"seed": 8}, "seed is 0 there and 8 here"),
    "another optimizer": ({"make_module": Faster}, "optimizers is"),
    "another Trainer": ({"make_trainer": lambda: make_trainer(gradient_clip_val=1.0)}, "trainer is"),
    "another length": ({"make_trainer": lambda: make_trainer(max_steps=9)}, "steps is 18 there and 9 here"),
    "other data": ({"make_data": lambda seed: make_data(seed + 50)}, "batches is"),
    "another measurement": ({"connectivity": {"num_samples": 16}}, "connectivity is"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_another_study_is_not_overwritten(what: str, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    study(directory, spawn_steps=(4,))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    options, words = CHANGED[what]
    with pytest.raises(FileExistsError) as caught:
        study(directory, **{"spawn_steps": (4,), **options})
    assert words in str(caught.value)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_force_replaces_a_study_and_nothing_else(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    study(directory, spawn_steps=(0, 4))
    (directory / "notes.txt").write_text("mine")
    result = study(directory, spawn_steps=(12,), force=True)
    assert [row["spawn_step"] for row in result.rows] == [12]
    assert {path.name for path in directory.glob("step-*.ckpt")} == {
        f"step-12{end}.ckpt" for end in ("", "-seed-1", "-seed-2")
    }
    assert (directory / "notes.txt").read_text() == "mine"


def test_folder_of_something_else_is_left_alone_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "step-4.ckpt").write_text("mine")
    with pytest.raises(FileExistsError, match="has files but no study"):
        study(tmp_path, spawn_steps=(4,), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-4.ckpt"]
