"""Copies that part at a step: what they share, what differs, and what comes of them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.utils.data import DataLoader

from lightning_probes.probing.run.spawning import train_child, train_parent
from lightning_probes.probing.run.trial import seed_all
from lightning_probes.studies import InstabilityResult
from lightning_probes.studies.family import Family
from lightning_probes.studies.folder import Folder
from tests import wandb_offline
from tests.studies.trained import (
    EPOCH,
    MADE,
    SPAWN_STEPS,
    STEPS,
    Net,
    assert_equal,
    make_data,
    make_trainer,
    study,
    weights,
)


@pytest.mark.parametrize("step", SPAWN_STEPS)
def test_child_is_a_plain_run_resumed_from_the_checkpoint(step: int, whole: tuple[Path, InstabilityResult]) -> None:
    directory, _ = whole
    seed_all(2)
    data, module, trainer = make_data(2), Net(), make_trainer(_SeedsAtStart(2))
    trainer.fit(module, data, ckpt_path=str(directory / f"step-{step}.ckpt"))
    assert trainer.global_step == STEPS
    assert_equal(dict(module.state_dict()), weights(directory / f"step-{step}-seed-2.ckpt"))


class _SeedsAtStart(Callback):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, *_: Any) -> None:
        seed_all(self.seed)


def test_child_of_the_initialisation_is_a_plain_run_from_scratch(whole: tuple[Path, InstabilityResult]) -> None:
    directory, _ = whole
    seed_all(0)
    module = Net()
    make_trainer(_SeedsAtStart(1)).fit(module, make_data(1))
    assert_equal(dict(module.state_dict()), weights(directory / "step-0-seed-1.ckpt"))


class Ordered(torch.utils.data.Sampler[int]):
    """An order that follows from seed and epoch alone, so that a resumed run goes on as an uninterrupted one."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 48

    def __iter__(self) -> Any:
        order = torch.Generator().manual_seed(100 * self.seed + self.epoch)
        return iter(torch.randperm(48, generator=order).tolist())


class Plain(Net):
    """Without dropout, whose draws a checkpoint does not keep."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[3] = torch.nn.Identity()


class Halving(Plain):
    """With a schedule that acts between epochs, where the checkpoint is."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


@pytest.mark.parametrize("kind", [Plain, Halving])
@pytest.mark.parametrize("step", [EPOCH, 2 * EPOCH])
@pytest.mark.parametrize("length", [{"max_steps": -1, "max_epochs": 3}, {"max_steps": STEPS, "max_epochs": -1}])
def test_child_with_the_order_of_the_parent_ends_where_a_run_without_a_stop_ends(
    kind: type[Plain], step: int, length: dict[str, int], tmp_path: Path
) -> None:
    """Optimizer, momentum and schedule are those of step k, and none is taken twice."""
    base = make_data(0).dataset

    def ordered() -> DataLoader[Any]:
        return DataLoader(base, batch_size=8, sampler=Ordered(7))

    seed_all(0)
    unbroken = kind()
    make_trainer(**length).fit(unbroken, ordered())
    seed_all(0)
    train_parent(make_trainer(**length), kind(), ordered(), {step: tmp_path / "start.ckpt"}, 0)
    ends = [tmp_path / f"{name}.ckpt" for name in "ab"]
    for end in ends:
        facts = train_child(make_trainer(**length), kind(), ordered(), tmp_path / "start.ckpt", end, 1)
        assert facts["step"] == STEPS
    assert_equal(weights(ends[0]), dict(unbroken.state_dict()))
    assert_equal(weights(ends[1]), weights(ends[0]))


def test_children_with_one_order_end_bit_equal_and_have_no_barrier(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    family = Family(**MADE, seed=0, connectivity={"num_samples": 48}, folder=folder)
    family.train_parent((4,))
    for _ in range(2):
        family.train_child(4, 1)
        (tmp_path / "step-4-seed-1.ckpt").rename(tmp_path / "step-4-seed-9.ckpt")
    family.train_child(4, 1)
    assert_equal(weights(tmp_path / "step-4-seed-9.ckpt"), weights(tmp_path / "step-4-seed-1.ckpt"))
    row = family.between(4, 1, 9)
    assert [row[key] for key in ("barrier", "barrier_mean", "error_barrier_mean", "distance")] == [0.0] * 4
    assert row["travelled"] > 0


def test_rows_say_how_far_the_ends_lie_apart_and_from_where_they_parted(whole: tuple[Path, InstabilityResult]) -> None:
    directory, result = whole
    names = [name for name, _ in Net().named_parameters()]
    for row in result.rows:
        step = row["spawn_step"]
        start, first, second = (
            torch.cat([weights(directory / f"step-{step}{which}.ckpt")[name].flatten().double() for name in names])
            for which in ("", "-seed-1", "-seed-2")
        )
        assert row["distance"] == pytest.approx(float((first - second).norm()), rel=1e-6)
        travelled = float((first - start).norm() + (second - start).norm()) / 2
        assert row["travelled"] == pytest.approx(travelled, rel=1e-6)


def test_each_pair_of_three_children_has_a_row_and_a_step_is_drawn_as_their_mean(tmp_path: Path) -> None:
    result = study(tmp_path / "study", children=3, spawn_steps=(12,))
    assert [(row["seed_first"], row["seed_second"]) for row in result.rows] == [(1, 2), (1, 3), (2, 3)]
    barriers = result.to_dict()["error_barrier_mean"]
    lines = [trace for trace in result.figure().data if trace.mode]
    assert [list(trace.y) for trace in lines] == [[pytest.approx(np.mean(barriers))]]


def test_order_follows_the_global_generators_where_a_loader_has_none(tmp_path: Path) -> None:
    def shuffled(seed: int) -> DataLoader[Any]:
        return DataLoader(make_data(0).dataset, batch_size=8, shuffle=True)

    first, second = (study(tmp_path / name, make_data=shuffled, spawn_steps=(4,)) for name in "ab")
    assert first == second
    assert first.rows[0]["distance"] > 0


def test_what_training_draws_follows_the_seed_and_not_what_was_drawn_before(
    whole: tuple[Path, InstabilityResult], tmp_path: Path
) -> None:
    def drawing(seed: int) -> DataLoader[Any]:
        torch.rand(3)
        return make_data(seed)

    assert study(tmp_path / "study", make_data=drawing, spawn_steps=(0, 4)).rows == whole[1].rows[:2]


class Stateful(DataLoader[Any]):
    """Keeps its order in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def test_loader_that_restores_its_order_does_not_give_children_the_order_of_the_parent(tmp_path: Path) -> None:
    def stateful(seed: int) -> Stateful:
        order = torch.Generator().manual_seed(seed)
        return Stateful(make_data(0).dataset, batch_size=8, shuffle=True, generator=order)

    result = study(tmp_path / "study", make_data=stateful, spawn_steps=(4,))
    assert result.rows[0]["distance"] > 0


class RestoresOrder(LightningDataModule):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Any]:
        return make_data(self.seed)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]


def test_data_module_that_restores_its_order_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="trained on the same first batches"):
        study(tmp_path / "study", make_data=RestoresOrder, spawn_steps=(4,))


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.training_step(batch, batch_idx)


def test_validation_data_are_measured_as_well(tmp_path: Path) -> None:
    def both(seed: int) -> dict[str, Any]:
        return {"train": make_data(seed), "val": DataLoader(make_data(0).dataset, batch_size=8)}

    row = study(tmp_path / "study", make_module=Validated, make_data=both, spawn_steps=(4,)).rows[0]
    assert row["val/error_barrier_mean"] == pytest.approx(row["error_barrier_mean"], abs=1e-6)


def test_generators_of_the_caller_are_where_they_were(tmp_path: Path) -> None:
    seed_all(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    seed_all(5)
    study(tmp_path / "study", spawn_steps=(4,))
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_columns_have_a_value_for_each_row(whole: tuple[Path, InstabilityResult]) -> None:
    _, result = whole
    columns = result.to_dict()
    assert columns["spawn_step"] == list(SPAWN_STEPS)
    assert [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] == [*result.rows]
    assert [row["step"] for row in result.trainings] == [12, *[STEPS] * 6]


def test_a_diverged_child_has_no_barrier_and_the_rest_of_the_study_goes_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no barrier could be measured"):
        result = study(tmp_path / "study", make_module=Diverging, spawn_steps=(4,))
    row = result.rows[0]
    assert row["barrier"] is row["error_barrier_mean"] is row["loss_second"] is None
    assert result.stable_from() is None


class Diverging(Net):
    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step > 6:
            self.layers[0].weight.data.fill_(float("nan"))


def test_stability_is_asked_of_all_later_steps() -> None:
    def rows(**barriers: float | None) -> InstabilityResult:
        return InstabilityResult(
            [{"spawn_step": int(key[1:]), "error_barrier_mean": value} for key, value in barriers.items()]
        )

    assert rows(k0=0.1, k5=0.01, k9=0.0).stable_from() == 5
    assert rows(k0=0.0, k5=0.03, k9=0.0).stable_from() == 9
    assert rows(k0=0.0, k5=0.02).stable_from() is None
    assert rows(k0=0.0, k5=None).stable_from() is None
    with pytest.raises(ValueError, match="no error was measured"):
        InstabilityResult([{"spawn_step": 0, "barrier_mean": 0.0}]).stable_from()


def test_weights_and_biases_get_a_group_of_runs_one_table_and_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logging: Callable[[], Trainer] = lambda: make_trainer(logger=WandbLogger(save_dir=tmp_path / "wandb"))  # noqa: E731
    logger = WandbLogger(save_dir=tmp_path / "table")
    result = study(tmp_path / "study", make_trainer=logging, spawn_steps=(0, 4), logger=logger)
    logger.experiment.finish()

    group = json.loads((tmp_path / "study" / "study.json").read_text())["name"]
    names = [
        f"{group}-{name}" for name in ("parent", *(f"step-{step}-seed-{seed}" for step in (0, 4) for seed in (1, 2)))
    ]
    logs = sorted((tmp_path / "wandb").rglob("run-*.wandb"))
    assert sorted(log.stem.removeprefix("run-") for log in logs) == sorted(names)
    assert all(group.encode() in log.read_bytes() for log in logs)
    (run,) = wandb_offline.read_all(tmp_path / "table")
    assert [path.stem for path in run.directory.glob("run-*.wandb")] == [f"run-{group}-table"]
    rows = run.rows("instability/error_barrier_mean")
    assert [row["trainer/global_step"] for row in rows] == [0, 4]
    assert [row["instability/error_barrier_mean"] for row in rows] == result.to_dict()["error_barrier_mean"]
    shown = [key for key, value in run.history[-1].items() if isinstance(value, dict) and "path" in value]
    assert sorted(shown) == ["instability/barrier_over_spawn_step", "instability/events"]
    table = run.table(run.history[-1]["instability/events"])
    assert [row["spawn_step"] for row in table] == [0, 4]
    assert [row["travelled"] for row in table] == result.to_dict()["travelled"]


def test_other_loggers_get_the_numbers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "table", "a")
    result = study(tmp_path / "study", spawn_steps=(4,), logger=logger)
    with (tmp_path / "table" / "a" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert [float(row["instability/distance"])] == result.to_dict()["distance"]
