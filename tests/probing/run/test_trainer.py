"""Where a run's files belong, and its batches. What a Trainer is asked otherwise shows in the tests of whole fits."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lightning_probes.probing.run.trainer import logger_step, run_directory
from lightning_probes.probing.view import pinned

LOGGERS = {
    "numbered": {},
    "named version": {"version": "mine"},
    "without a name": {"name": None},
    "name with a slash": {"name": "group/run"},
}


@pytest.mark.parametrize("arguments", LOGGERS.values(), ids=LOGGERS)
def test_files_belong_beside_the_checkpoints_of_the_first_logger(arguments, tmp_path):
    checkpoints = ModelCheckpoint()
    loggers = [CSVLogger(tmp_path / "logs", **arguments), CSVLogger(tmp_path / "second")]
    trainer = L.Trainer(
        logger=loggers, callbacks=[checkpoints], max_steps=1, limit_val_batches=0, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert run_directory(trainer) == Path(checkpoints.dirpath).parent / "probes"


def test_without_a_logger_they_belong_in_the_default_directory(tmp_path):
    trainer = L.Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", enable_checkpointing=False)
    assert run_directory(trainer) == tmp_path / "probes"


@pytest.mark.parametrize("version", [None, 3, "abc"])
def test_a_logger_that_saves_nowhere_and_has_no_version_leaves_them_there_too(version, tmp_path):
    logger = SimpleNamespace(save_dir=None, name=None, version=version)
    trainer = SimpleNamespace(loggers=[logger], default_root_dir=str(tmp_path))
    expected = version if isinstance(version, str) else f"version_{version}"
    assert run_directory(trainer) == tmp_path / "None" / expected / "probes"


def test_the_place_does_not_move_with_the_working_directory(tmp_path, monkeypatch):
    trainer = SimpleNamespace(loggers=[SimpleNamespace(save_dir="logs", name="a", version=0)], default_root_dir=".")
    (tmp_path / "elsewhere").mkdir()
    before = run_directory(trainer)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert before == tmp_path / "logs" / "a" / "version_0" / "probes"
    assert before.is_absolute()


def test_the_loggers_step_is_read_without_the_trainers_own_which_is_slow_to_tell():
    loop = SimpleNamespace(_batches_that_stepped=7)
    assert logger_step(SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=loop))) == 7
    assert logger_step(SimpleNamespace(global_step=3)) == 3


def test_batches_for_a_gpu_are_pinned_but_for_what_can_not_be(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: ("pinned", tensor))
    dense, sparse = torch.ones(2), torch.eye(2).to_sparse()
    there = torch.ones(2, device="meta")
    found = pinned({"x": [dense, sparse], "y": (there, "text")})
    assert found["x"][0] == ("pinned", dense)
    assert found["x"][1] is sparse
    assert found["y"][0] is there
    assert found["y"][1] == "text"
