from datetime import timedelta

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from lightning_probes.probing.run.checkpoints import watch_checkpoints


class Watcher(L.Callback):
    """Writes down the step of every save."""

    def __init__(self, save_at=None, **how):
        self.steps = []
        self.save_at, self.how = save_at, how

    def setup(self, trainer, pl_module, stage):
        self.stop = watch_checkpoints(trainer, lambda: self.steps.append(trainer.global_step))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint("manual.ckpt", **self.how)

    def teardown(self, trainer, pl_module, stage):
        self.stop()


def fit(watcher, *callbacks, **arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer = L.Trainer(callbacks=[watcher, *callbacks], **{**quiet, **settings, **arguments})
    data = DataLoader(torch.zeros(8, 32))
    trainer.fit(BoringModel(), data, data)
    return trainer


@pytest.mark.parametrize(
    ("saving", "steps"),
    [
        ({}, {4, 8}),
        ({"save_weights_only": True}, {4, 8}),
        ({"every_n_train_steps": 3}, {3, 6}),
        ({"train_time_interval": timedelta(0)}, set(range(1, 9))),
        ({"save_on_train_epoch_end": True, "save_top_k": -1}, {4, 8}),
        ({"save_last": True, "save_top_k": 0, "save_weights_only": True}, {8}),
    ],
    ids=["epoch", "weights only", "steps", "time", "epoch end", "last"],
)
def test_every_save_of_model_checkpoint_is_noticed(tmp_path, saving, steps):
    watcher = Watcher()
    fit(watcher, ModelCheckpoint(tmp_path, **saving))
    assert steps <= set(watcher.steps)
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("how", [{}, {"weights_only": True}])
def test_manual_save_is_noticed(how):
    watcher = Watcher(save_at=3, **how)
    fit(watcher, enable_checkpointing=False)
    assert watcher.steps == [3]


def test_nothing_is_noticed_where_nothing_is_saved():
    watcher = Watcher()
    fit(watcher, enable_checkpointing=False)
    assert watcher.steps == []


def test_the_trainer_is_as_it_was_when_the_last_watcher_has_stopped():
    first, second = Watcher(), Watcher()
    trainer = fit(first, second, Watcher(save_at=2), enable_checkpointing=False)
    assert first.steps == second.steps == [2]
    assert "save_checkpoint" not in vars(trainer)


class Saver:
    def __init__(self):
        self.saved = []

    def save_checkpoint(self, path, *, weights_only=False):
        if path == "full":
            raise OSError("disk full")
        self.saved.append((path, weights_only))
        return len(self.saved)


def test_arguments_and_result_pass_through_and_a_failed_save_is_none():
    saver, seen = Saver(), []
    watch_checkpoints(saver, lambda: seen.append(len(saver.saved)))
    assert saver.save_checkpoint("a", weights_only=True) == 1
    assert saver.saved == [("a", True)]
    assert seen == [1]
    with pytest.raises(OSError, match="disk full"):
        saver.save_checkpoint("full")
    assert seen == [1]


def test_one_wrapper_serves_all_and_each_stops_for_itself():
    saver, seen = Saver(), []
    stops = [watch_checkpoints(saver, lambda i=i: seen.append(i)) for i in range(2)]
    saver.save_checkpoint("a")
    stops[0]()
    stops[0]()
    saver.save_checkpoint("b")
    assert seen == [0, 1, 1]
    stops[1]()
    assert vars(saver).keys() == {"saved"}


def test_a_listener_may_stop_while_it_is_told():
    saver, seen = Saver(), []
    stop = watch_checkpoints(saver, lambda: (seen.append(1), stop()))
    watch_checkpoints(saver, lambda: seen.append(2))
    saver.save_checkpoint("a")
    saver.save_checkpoint("b")
    assert seen == [1, 2, 2]


def test_a_wrapper_of_the_users_own_below_comes_back():
    saver = Saver()
    own = saver.save_checkpoint = lambda path: path
    stop = watch_checkpoints(saver, lambda: None)
    assert saver.save_checkpoint("a") == "a"
    stop()
    assert saver.save_checkpoint is own


def test_a_wrapper_of_the_users_own_above_stays():
    saver, seen = Saver(), []
    stop = watch_checkpoints(saver, lambda: seen.append(1))
    ours = saver.save_checkpoint
    own = saver.save_checkpoint = lambda path: ours(path)
    saver.save_checkpoint("a")
    stop()
    assert saver.save_checkpoint is own
    saver.save_checkpoint("b")
    assert seen == [1]
    assert [path for path, _ in saver.saved] == ["a", "b"]
