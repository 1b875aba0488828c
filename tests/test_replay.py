"""A replay over the checkpoints of a finished run measures what the probes would have measured in the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.cli import main
from lightning_probes.replay import replay
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, cnn, mlp
from tests.kinds import GradientNorm
from tests.test_evaluate import numbers
from tests.tester import fit

STEPS = [0, 4, 8, 12]
ROOT = Path(__file__).parents[1]


class Adam(Supervised):
    """With an optimizer that has a memory, and a rate that falls."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2, betas=(0.5, 0.999))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def made(kind: Callable[..., Supervised] = Adam) -> Fit:
    torch.manual_seed(3)
    return Fit(kind(cnn()), loader(labelled(1, 8, 8)), loader(labelled(1, 8, 8, samples=24, seed=1), shuffle=False))


class Saves(L.Callback):
    """At the start of batches, where probes measure."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        self.folder = folder
        self.arguments = arguments

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step in STEPS:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt", **self.arguments)


def probes(**arguments: Any) -> list[Probe]:
    shared: dict[str, Any] = {"num_samples": 24, "schedule": EveryNSteps(4), **arguments}
    return [
        FisherTrace(labels="exact", **shared),
        InitInterpolation(num_alphas=3, **shared),
        LayerCKA(**shared),
        Sharpness(quantities=("lambda_max", "sam", "trace"), per_layer=True, **shared),
    ]


def trained(folder: Path, measuring: Sequence[L.Callback] = (), **arguments: Any) -> None:
    folder.mkdir()
    fit(made, [*measuring, Saves(folder)], folder, max_epochs=3, max_steps=13, **arguments)


def assert_equal(found: Probe, expected: Probe) -> None:
    """Iterative estimates too: at the same steps they start from the same vectors."""
    assert [row["step"] for row in found.history] == [row["step"] for row in expected.history]
    for row, other in zip(found.history, expected.history, strict=True):
        for key in other:
            if key != "epoch" and not key.endswith(("/seconds", "/overhead")):
                assert row[key] == pytest.approx(other[key], rel=1e-6, abs=1e-9), (key, row["step"])
    for key, result in expected.results.items():
        np.testing.assert_allclose(numbers(found.results[key]), numbers(result), rtol=1e-6, atol=1e-9, err_msg=key)


def data() -> dict[str, Any]:
    fresh = made()
    return {"train": fresh.train, "val": fresh.val}


def test_replay_equals_probes_that_were_attached_optimizer_dependent_numbers_too(tmp_path: Path) -> None:
    live, again = probes(), probes()
    trained(tmp_path / "run", live)
    replay(again, made().module, tmp_path / "run" / "*.ckpt", data())
    for found, expected in zip(again, live, strict=True):
        assert [row["step"] for row in found.history] == STEPS
        assert_equal(found, expected)
    assert "sharpness/stability_ratio" in again[-1].history[-1]


def test_from_fewer_checkpoints_iterative_estimates_are_those_of_the_run_within_their_residuals(tmp_path: Path) -> None:
    """Where they start from another vector, because the one of the event before is missing."""
    live, again = (
        Sharpness(quantities=("lambda_max", "sam", "trace"), num_samples=24, schedule=EveryNSteps(4)) for _ in range(2)
    )
    trained(tmp_path / "run", [live])
    replay([again], made().module, [tmp_path / "run" / f"{step}.ckpt" for step in (8, 12)], data())
    assert len(again.history) == 2
    for row, other in zip(again.history, live.history[-2:], strict=True):
        assert row["step"] == other["step"]
        residual, others = (each["sharpness/lambda_max_residual"] for each in (row, other))
        assert residual != others
        assert row["sharpness/lambda_max"] == pytest.approx(other["sharpness/lambda_max"], rel=residual + others)
        # Both have stopped at a residual of at most 1e-3.
        assert row["sharpness/stability_ratio"] == pytest.approx(other["sharpness/stability_ratio"], rel=2e-3)
        error = row["sharpness/trace_se"] + other["sharpness/trace_se"]
        assert row["sharpness/trace"] == pytest.approx(other["sharpness/trace"], abs=3 * error)
        for direct in ("sharpness/loss", "sharpness/sam", "sharpness/sam_se"):
            assert row[direct] == pytest.approx(other[direct], rel=1e-6)


class DecaysByEpoch(Supervised):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def test_the_checkpoint_of_an_epoch_s_end_has_the_learning_rate_of_the_next_step(tmp_path: Path) -> None:
    make = partial(made, DecaysByEpoch)
    live, again = (Sharpness(num_samples=24, schedule=EveryNSteps(5, start=5)) for _ in range(2))
    saving = ModelCheckpoint(tmp_path / "run", save_top_k=-1)
    fit(make, [live, saving], tmp_path, enable_checkpointing=True, max_epochs=4)
    replay([again], make().module, tmp_path / "run", data())
    assert [row["step"] for row in live.history] == [5, 10, 15]
    assert [row["step"] for row in again.history] == [5, 10, 15, 20]
    for row, other in zip(again.history, live.history, strict=False):
        assert row["sharpness/stability_ratio"] == pytest.approx(other["sharpness/stability_ratio"], rel=1e-6)


def test_order_is_that_of_the_steps_and_one_checkpoint_of_a_step_is_enough(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    paths = [tmp_path / "run" / f"{step}.ckpt" for step in (12, 0, 8)]
    (tmp_path / "run" / "last.ckpt").write_bytes(paths[0].read_bytes())
    fisher = FisherTrace(num_samples=24)
    replay([fisher], made().module, [*paths, tmp_path / "run" / "last.ckpt"], data())
    assert [row["step"] for row in fisher.history] == [0, 8, 12]


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    module = made().module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    replay([FisherTrace(num_samples=24)], module, tmp_path / "run", data())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module._trainer is None


def test_results_go_to_the_logger_under_the_steps_of_the_run(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    logger = CSVLogger(tmp_path / "logs", name="", version="")
    replay([FisherTrace(num_samples=24)], made().module, tmp_path / "run", data(), logger=logger)
    rows = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    steps = [row.split(",")[rows[0].split(",").index("step")] for row in rows[1:]]
    assert [*map(int, steps)] == STEPS
    assert "fisher/trace" in rows[0]
    assert "probes/overhead" not in rows[0]


def test_a_damaged_checkpoint_is_reported_and_passed_over(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    whole = (tmp_path / "run" / "4.ckpt").read_bytes()
    (tmp_path / "run" / "4.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"other": 1}, tmp_path / "run" / "6.ckpt")
    fisher = FisherTrace(num_samples=24)
    with pytest.warns(UserWarning, match="is damaged and was skipped") as said:
        replay([fisher], made().module, tmp_path / "run", data())
    assert [row["step"] for row in fisher.history] == [0, 8, 12]
    damaged = [str(each.message) for each in said if "is damaged" in str(each.message)]
    assert ["4.ckpt" in damaged[0], "6.ckpt" in damaged[1], len(damaged)] == [True, True, 2]


class Hooked(Adam):
    """Begins something with training that its steps need, and saves something when it ends."""

    def on_train_start(self) -> None:
        self.begun = True

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert self.begun
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        raise AssertionError("no epoch has ended")

    def on_train_end(self) -> None:
        raise AssertionError("no training has ended")

    on_fit_end = on_train_end

    def configure_callbacks(self) -> list[L.Callback]:
        raise AssertionError("nothing is to be saved")


def test_hooks_begin_training_and_none_ends_it(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    module, fisher = made(Hooked).module, FisherTrace(num_samples=24)
    replay([fisher], module, tmp_path / "run", data())
    assert [row["step"] for row in fisher.history] == STEPS
    assert module.begun
    assert not {"configure_callbacks", "on_train_end", "on_fit_end"} & vars(module).keys()


def test_where_no_checkpoint_is_whole_that_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.ckpt").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="is damaged and was skipped"),
        pytest.raises(ValueError, match="none of the checkpoints can be read"),
    ):
        replay([FisherTrace()], made().module, tmp_path, data())


class Secret:
    """Not among the types that may be loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_code_in_a_checkpoint_is_not_run_and_the_error_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "run")
    content = torch.load(tmp_path / "run" / "4.ckpt", weights_only=True)
    torch.save({**content, "hyper_parameters": Secret()}, tmp_path / "run" / "4.ckpt")
    with pytest.raises(ValueError, match=r"4\.ckpt' holds an object of .*mkdir.*add_safe_globals"):
        replay([FisherTrace()], made().module, tmp_path / "run", data())
    assert not (tmp_path / "ran").exists()


def test_checkpoints_of_another_module_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    with pytest.raises(ValueError, match="does not belong to this module"):
        replay([FisherTrace()], Supervised(mlp()), tmp_path / "run", data())


def test_what_a_checkpoint_lacks_is_left_out_and_that_is_said_once(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "run").mkdir()
    fit(made, [Saves(tmp_path / "run", weights_only=True)], tmp_path, max_epochs=3, max_steps=13)
    sharpness = Sharpness(num_samples=24)
    said = sentences(lambda: replay([sharpness], made().module, tmp_path / "run", data()))
    assert [row["step"] for row in sharpness.history] == STEPS
    assert all("sharpness/stability_ratio" not in row for row in sharpness.history)
    assert len([line for line in said if "no optimizer state" in line]) == 1


def sentences(run: Callable[[], Any]) -> list[str]:
    """What is said, to whomever."""
    from lightning_probes.probing.run import speaker

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speaker, "rank_zero_info", said.append)
        run()
    return said


def test_without_the_checkpoint_of_step_0_the_initialisation_is_not_known(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    line, cka = InitInterpolation(num_alphas=3, num_samples=24), LayerCKA(num_samples=24)
    start = tmp_path / "run" / "0.ckpt"
    paths = [tmp_path / "run" / f"{step}.ckpt" for step in STEPS[1:]]
    replay([line, cka], made().module, paths, data(), directory=tmp_path / "first")
    assert line.history == []
    assert all("cka/to_init_mean" not in row for row in cka.history)
    told = "the initialisation of this run is not known: pass init_state= to compare with it"
    assert told in line.say.said & cka.say.said

    known = InitInterpolation(num_alphas=3, num_samples=24, init_state=start)
    replay([known], made().module, paths, data(), directory=tmp_path / "second")
    assert [row["step"] for row in known.history] == STEPS[1:]


def test_averaged_weights_are_measured_as_they_were_saved(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fit(made, [EMAWeightAveraging(decay=0.5), Saves(tmp_path / "run")], tmp_path, max_epochs=3, max_steps=13)
    content = torch.load(tmp_path / "run" / "8.ckpt", weights_only=True)
    alone = made().module
    alone.load_state_dict(content["state_dict"])
    fisher = FisherTrace(num_samples=24, labels="exact")
    said = sentences(lambda: replay([fisher], made().module, tmp_path / "run" / "8.ckpt", data()))
    expected = FisherTrace(num_samples=24, labels="exact").evaluate(alone, made().train)["fisher/trace"]
    assert fisher.history[0]["fisher/trace"] == pytest.approx(expected.value, rel=1e-5)  # type: ignore[union-attr]
    assert any("averaged weights: these are measured" in line for line in said)


def test_a_trainer_gives_the_clipping_that_a_checkpoint_does_not_hold(tmp_path: Path) -> None:
    live = Sharpness(num_samples=24, schedule=EveryNSteps(4))
    trained(tmp_path / "run", [live], gradient_clip_val=0.05)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", gradient_clip_val=0.05, **quiet)
    again = Sharpness(num_samples=24)
    replay([again], made().module, tmp_path / "run", data(), trainer=trainer)
    assert_equal(again, live)


def test_a_trainer_gives_the_precision_that_a_checkpoint_does_not_hold(tmp_path: Path) -> None:
    def both() -> list[Probe]:
        shared: dict[str, Any] = {"num_samples": 24, "schedule": EveryNSteps(4)}
        return [FisherTrace(labels="exact", **shared), LayerCKA(**shared)]

    live, again = both(), both()
    trained(tmp_path / "run", live, precision="bf16-true")
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", precision="bf16-true", **quiet)
    replay(again, made().module, tmp_path / "run", data(), trainer=trainer)
    for found, expected in zip(again, live, strict=True):
        assert_equal(found, expected)


class SavesEach(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize("case", ["gan", "data_module"])
def test_several_optimizers_and_a_data_module_are_replayed_at_the_steps_of_the_run(case: str, tmp_path: Path) -> None:
    make, arguments = CASES[case].make, CASES[case].arguments_for(LayerCKA)
    live, again = (LayerCKA(num_samples=24, schedule=EveryNSteps(1), data="train", **arguments) for _ in range(2))
    fit(make, [live, SavesEach(tmp_path)], tmp_path)
    fresh = make()
    replay([again], fresh.module, tmp_path, fresh.datamodule or fresh.train)
    # The last checkpoint comes after the last batch, and the first one after the first.
    assert [row["step"] for row in again.history] == [row["step"] + 1 for row in live.history]
    measured = {row["step"]: row["cka/null_p95"] for row in again.history}
    for row in live.history[1:]:
        assert measured[row["step"]] == pytest.approx(row["cka/null_p95"], rel=1e-6)


class Counts(Probe):
    """Writes down each measurement, and may be killed after one."""

    def __init__(self, file: Path, kill_at: int | None = None) -> None:
        super().__init__(name="counts", schedule=EveryNSteps(1), num_samples=8)
        self._written_to, self._killed_at = file, kill_at

    def measure(self, view: Any) -> Any:
        from lightning_probes import Scalar

        with self._written_to.open("a") as file:
            file.write(f"{view.step}\n")
        self.carried["times"] = self.carried.get("times", 0) + 1
        if view.step == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Scalar("times", self.carried["times"])
        yield Scalar("loss", float(view.mean_loss({})))


def replay_and_be_killed(directory: Path, kill_at: int | None) -> None:
    torch.set_num_threads(1)
    counts = Counts(directory / "measured.txt", kill_at)
    replay([counts, FisherTrace(num_samples=24)], made().module, directory / "run", data())


@pytest.mark.parametrize("torn", [False, True])
def test_a_replay_that_was_killed_goes_on_and_measures_no_checkpoint_twice(tmp_path: Path, torn: bool) -> None:
    trained(tmp_path / "run")
    process = multiprocessing.get_context("spawn").Process(target=replay_and_be_killed, args=(tmp_path, 8))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "measured.txt").read_text().split() == ["0", "4", "8"]
    [journal] = (tmp_path / "run" / "replay").glob("counts-*/counts.jsonl")
    assert len(journal.read_text().splitlines()) == 2
    if torn:
        with journal.open("a") as file:
            file.write('{"step": 8, "epo')

    counts, fisher = Counts(tmp_path / "measured.txt"), FisherTrace(num_samples=24)
    replay([counts, fisher], made().module, tmp_path / "run", data())
    assert (tmp_path / "measured.txt").read_text().split() == ["0", "4", "8", "8", "12"]  # the one it was killed in
    assert [row["step"] for row in counts.history] == [row["step"] for row in fisher.history] == STEPS
    assert [row["counts/times"] for row in counts.history] == [1, 2, 3, 4]
    assert len(journal.read_text().splitlines()) == 4

    replay([Counts(tmp_path / "measured.txt")], made().module, tmp_path / "run", data())
    assert (tmp_path / "measured.txt").read_text().split() == ["0", "4", "8", "8", "12"]


def test_other_arguments_or_another_run_in_the_same_folder_begin_anew(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    replay([FisherTrace(num_samples=24)], made().module, tmp_path / "run", data())
    fewer, same = FisherTrace(num_samples=16), FisherTrace(num_samples=24)
    replay([fewer], made().module, tmp_path / "run", data())
    alone = FisherTrace(num_samples=16)
    replay([alone], made().module, tmp_path / "run", data(), directory=tmp_path / "alone")
    assert [row["fisher/trace"] for row in fewer.history] == [row["fisher/trace"] for row in alone.history]

    content = torch.load(tmp_path / "run" / "4.ckpt", weights_only=True)
    content["state_dict"] = {name: 0 * value for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "run" / "4.ckpt")
    replay([same], made().module, tmp_path / "run", data())
    fresh = FisherTrace(num_samples=24)
    replay([fresh], made().module, tmp_path / "run", data(), directory=tmp_path / "fresh")
    assert [row["fisher/trace"] for row in same.history] == [row["fisher/trace"] for row in fresh.history]


def test_what_can_not_be_replayed_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    with pytest.raises(MisconfigurationException, match="monitors and interventions need training"):
        replay([GradientNorm()], made().module, tmp_path / "run", data())  # type: ignore[list-item]
    with pytest.raises(MisconfigurationException, match="two probes are called 'fisher'"):
        replay([FisherTrace(), FisherTrace()], made().module, tmp_path / "run", data())
    with pytest.raises(MisconfigurationException, match="the data that the run was trained on"):
        replay([FisherTrace()], made().module, tmp_path / "run", {"val": made().val})
    with pytest.raises(ValueError, match="names no file"):
        replay([FisherTrace()], made().module, tmp_path / "nowhere" / "*.ckpt", data())


def test_checkpoints_of_model_checkpoint_have_the_step_that_loggers_know(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "run", every_n_train_steps=2, save_top_k=-1)
    fit(made, [saving], tmp_path, enable_checkpointing=True, max_epochs=2, accumulate_grad_batches=2)
    counts = Counts(tmp_path / "measured.txt")
    replay([counts], made().module, tmp_path / "run", data())
    assert [row["step"] for row in counts.history] == [2, 4, 6]


# -- the command -------------------------------------------------------------------------------------------------------

PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.size = size

    def train_dataloader(self):
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=self.size)


if __name__ == "__main__":
    LightningCLI(Model, Data)
"""

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: ., name: demo, version: first}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {save_top_k: -1, every_n_train_steps: 2}
    - class_path: lightning_probes.FisherTrace
      init_args:
        num_samples: 16
        schedule:
          class_path: lightning_probes.EveryNSteps
          init_args: {n: 2, start: 2}
model:
  width: 5
data:
  size: 8
"""


def in_project(directory: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    found = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=200
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "args parameter is intended" not in found.stderr  # of LightningCLI, which the commands call
    return found.stdout


def test_command_replays_and_evaluates_a_project_of_lightning_cli(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "config.yaml").write_text(CONFIG)
    in_project(tmp_path, "project.py", "fit", "--config", "config.yaml")
    run = tmp_path / "demo" / "first"
    live = (run / "metrics.csv").read_text()

    command = ("-m", "lightning_probes.cli")
    given = ("--config", f"{run}/config.yaml", "--model", "project.Model", "--data", "project.Data")
    said = in_project(tmp_path, *command, "replay", *given, "--checkpoints", f"{run}/checkpoints/*.ckpt")
    assert len(list((run / "checkpoints" / "replay").glob("fisher-*/fisher.jsonl"))) == 1
    last = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)[-1]
    once = in_project(tmp_path, *command, "evaluate", *given, "--checkpoint", str(last))

    header, *rows = [line.split(",") for line in live.splitlines()]
    column, step = header.index("fisher/trace"), header.index("step")
    expected = {int(row[step]): float(row[column]) for row in rows if row[column]}
    assert sorted(expected) == [2, 4, 6]  # the last checkpoint comes after the last batch
    found = traces(said)
    assert sorted(found) == [2, 4, 6, 8]
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-6)
    assert traces(once) == {8: found[8]}


def traces(said: str) -> dict[int, float]:
    """By step, from what the command prints."""
    found, step = {}, -1
    for line in said.splitlines():
        key, _, value = line.partition(" ")
        step = int(value) if key == "step" else step
        if key == "fisher/trace":
            found[step] = float(value)
    return found


def test_command_says_what_the_config_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    boring = "class_path: lightning.pytorch.demos.boring_classes.BoringModel"
    for content, words in {
        "model: {width: 5}": "pass --model",
        f"model: {{{boring}}}\ndata: {{size: 5}}": "pass --data",
        f"model: {{{boring}}}\ntrainer: {{accelerator: cpu}}": "has no probe in trainer.callbacks",
    }.items():
        config.write_text(content)
        with pytest.raises(SystemExit):
            main(["evaluate", "--config", str(config), "--checkpoint", "last.ckpt"])
        assert words in capsys.readouterr().err


def test_command_knows_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("lightning-probes ")
