"""What a step reaches from the twin beyond the module, data, callbacks, loops, is a double too, or a view."""

import gc
from collections import deque
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, TensorDataset

from lightning_probes import AtFitEnd, EveryNSteps, LayerCKA, Sharpness
from lightning_probes.probing.isolation import twin as twins
from lightning_probes.probing.isolation import writes
from lightning_probes.probing.isolation.twin import Twin
from tests.callbacks.models import trainer


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            self.log("val", self.layer(batch[0]).mean(), add_dataloader_idx=False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Weighted(Sampler):
    def __init__(self):
        self.weights = torch.zeros(12)

    def __iter__(self):
        return iter(self.weights.argsort(stable=True).tolist())

    def __len__(self):
        return 12


class Hard(BatchSampler):
    def __init__(self, sampler):
        super().__init__(sampler, 4, drop_last=False)
        self.hardest = []


class Data(L.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.dataset = TensorDataset(torch.zeros(12, 3))
        self.seen = []

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_sampler=Hard(Weighted()))

    def val_dataloader(self):
        return [DataLoader(self.dataset, 4), DataLoader(TensorDataset(torch.ones(4, 3)), 4)]


class Keeps(L.Callback):
    def __init__(self):
        self.seen = []


@pytest.fixture
def fitted(tmp_path):
    net, data = Net(), Data()
    net.data = data
    own = [Keeps(), EarlyStopping("val", patience=3), ModelCheckpoint(tmp_path, monitor="val")]
    fit = trainer(max_epochs=1, callbacks=own, enable_checkpointing=True, default_root_dir=tmp_path)
    fit.mine = [1]
    fit.fit(net, datamodule=data)
    return net


REACHED = {
    "the sampler": lambda t: t.train_dataloader.batch_sampler.sampler.weights,
    "the batch sampler": lambda t: t.train_dataloader.batch_sampler.hardest,
    "the dataset": lambda t: t.train_dataloader.dataset.tensors[0],
    "the loader of a loop": lambda t: t.fit_loop._combined_loader.flattened[0].dataset.tensors[0],
    "validation data": lambda t: t.val_dataloaders[1].dataset.tensors[0],
    "the data module": lambda t: t.datamodule.seen,
    "data of the data module": lambda t: t.datamodule.dataset.tensors[0],
    "a callback": lambda t: t.callbacks[0].seen,
    "best scores": lambda t: t.early_stopping_callback.best_score,
    "best models": lambda t: t.checkpoint_callback.best_k_models,
    "a list of callbacks": lambda t: t.callbacks,
    "the user's own attribute": lambda t: t.mine,
    "metrics": lambda t: t.callback_metrics,
    "what a connector holds": lambda t: t._logger_connector._callback_metrics,
    "state of the optimizer": lambda t: t.optimizers[0].param_groups,
}


@pytest.mark.parametrize("what", REACHED)
def test_what_the_trainer_leads_to_is_a_double_that_comes_back_after_each_pass(what, fitted):
    twin, real = Twin(fitted), REACHED[what](fitted.trainer)
    before = repr(real)
    for _ in range(2):
        double = REACHED[what](twin.module.trainer)
        assert type(double) is type(real)
        assert double is not real
        if isinstance(double, torch.Tensor):
            double.add_(1)
        elif isinstance(double, dict):
            double["new"] = 1
        else:
            double.append(1)
        assert repr(REACHED[what](twin.module.trainer)) != before
        assert repr(REACHED[what](fitted.trainer)) == before
        twin.forget()
        assert len(repr(REACHED[what](twin.module.trainer))) == len(before)


def test_one_thing_reached_in_two_ways_is_one(fitted):
    twin = Twin(fitted)
    module = twin.module
    assert module.trainer.datamodule is module.data
    assert module.trainer.train_dataloader.dataset is module.data.dataset
    assert module.trainer.fit_loop.trainer is module.trainer
    assert module.trainer.strategy.lightning_module is module
    assert module.trainer.strategy is module.trainer.strategy
    assert isinstance(module.trainer.strategy, type(fitted.trainer.strategy))


def test_what_is_set_on_a_part_of_the_trainer_stays_in_the_twin_for_one_pass(fitted):
    twin, real = Twin(fitted), fitted.trainer
    loop, epochs = twin.module.trainer.fit_loop, real.fit_loop.max_epochs
    loop.max_epochs = 99
    loop.epoch_loop.batch_progress.current.ready += 5
    twin.module.trainer.strategy.note = "seen"
    assert loop.max_epochs == 99
    assert real.fit_loop.max_epochs == epochs
    assert real.fit_loop.epoch_loop.batch_progress.current.ready == 3
    assert not hasattr(real.strategy, "note")
    twin.forget()
    assert twin.module.trainer.fit_loop.max_epochs == epochs
    assert twin.module.trainer.fit_loop.epoch_loop.batch_progress.current.ready == 3


def test_methods_of_the_trainer_and_its_parts_change_the_view_alone(fitted):
    class Part:
        def stop(self):
            self.stopped = True

    Part.__module__ = "lightning.pytorch.loops.part"
    fitted.trainer.part = Part()
    twin = Twin(fitted)
    twin.module.trainer.part.stop()
    twin.module.trainer.save_checkpoint("never.ckpt")
    assert twin.module.trainer.part.stopped
    assert vars(fitted.trainer.part) == {}


def test_probes_among_the_callbacks_can_be_read_and_are_told_nothing(fitted):
    probe = Sharpness(schedule=AtFitEnd())
    probe.progress.log.record.history.append({"step": 1.0})
    fitted.trainer.callbacks.insert(0, probe)
    twin = Twin(fitted)
    seen = twin.module.trainer.callbacks[0]
    seen.on_train_end(fitted.trainer, fitted)
    seen.seed = 3
    assert isinstance(seen, Sharpness)
    assert seen.history[-1]["step"] == 1.0
    assert probe.seed == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_going_through_a_copied_loader_leaves_the_own_one_where_it_is(workers):
    generator = torch.Generator().manual_seed(1)
    net, data = Net(), TensorDataset(torch.arange(12.0))
    sampler = RandomSampler(data, generator=generator)
    net.loader = DataLoader(data, 4, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    own = iter(net.loader)
    first, state = next(own), generator.get_state()
    twin = Twin(net)
    for _ in range(2):
        assert len(list(twin.module.loader)) == 3
        twin.forget()
    assert torch.equal(generator.get_state(), state)
    assert len({*first[0].tolist(), *(x for batch in own for x in batch[0].tolist())}) == 12


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transform_that_is_scripted_is_no_reason_to_refuse_a_dataset():
    class Transformed(Dataset):
        def __init__(self):
            self.transform, self.seen = torch.jit.script(nn.Tanh()), []

    net = Net()
    net.data = Transformed()
    copied = Twin(net).module.data
    copied.seen.append(1)
    assert net.data.seen == []
    assert torch.equal(copied.transform(torch.ones(2)), torch.ones(2).tanh())


def test_items_of_data_are_private_however_many_there_are():
    class Samples(Dataset):
        def __init__(self):
            self.samples = [{"weight": torch.zeros(1)} for _ in range(2_000)]

    net = Net()
    net.data = Samples()
    twin = Twin(net)
    twin.module.data.samples[7]["weight"].add_(1)
    assert net.data.samples[7]["weight"] == 0


STORED = {
    "list": lambda item: [item] * 10_001,
    "tuple": lambda item: (item,) * 10_001,
    "deque": lambda item: deque([item] * 10_001),
    "dict": lambda item: dict.fromkeys(range(10_001), item),
    "array": lambda item: np.array([item] * 10_001, dtype=object),
    "short array": lambda item: np.array([item] * 8, dtype=object),
}


@pytest.mark.parametrize("kind", STORED)
def test_items_of_a_long_container_and_of_an_array_are_private_and_come_back(kind):
    net, weight = Net(), torch.zeros(1)
    net.bank = STORED[kind]({"weight": weight, "seen": []})
    twin = Twin(net)
    for _ in range(2):
        item = twin.module.bank[7]
        assert item is twin.module.bank[7]
        item["weight"].data.add_(1)
        item["seen"].append(1)
        assert (item["weight"], item["seen"]) == (1, [1])
        twin.forget()
    assert (weight, net.bank[7]["seen"]) == (0, [])


def test_a_very_long_list_of_paths_and_labels_is_a_plain_list():
    net = Net()
    net.samples = [("a.png", 1)] * 10_001
    assert type(Twin(net).module.samples) is list


class Wraps(torch.optim.SGD):
    """Keeps an optimizer, weights and settings of its own, and ends something when it goes."""

    ended: ClassVar[list] = []

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        self.inner = torch.optim.Adam(self.param_groups[0]["params"])
        self.slow_weights = [torch.zeros(2)]

    def __del__(self):
        self.ended.append(1)


OF_AN_OPTIMIZER = {
    "one by its parameter": lambda o, p: o.state[p]["momentum_buffer"],
    "one after another": lambda o, p: next(iter(o.state.values()))["momentum_buffer"],
    "as a state dict": lambda o, p: o.state_dict()["state"][0]["momentum_buffer"],
    "a tensor of a setting": lambda o, p: o.param_groups[0]["lr"],
    "tensors of its own": lambda o, p: o.slow_weights[0],
    "an optimizer inside": lambda o, p: o.inner.state[p]["exp_avg"],
}


HELD = {
    "by the trainer": lambda module: module.trainer.optimizers[0],
    "in Lightning's wrapper": lambda module: module.optimizers(),
    "by the module": lambda module: module.own,
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("what", OF_AN_OPTIMIZER)
def test_tensors_of_an_optimizer_are_private_and_come_back(what, held, fitted):
    weight = fitted.layer.weight
    real = Wraps(fitted.parameters(), lr=torch.tensor(0.1), momentum=0.9)
    for optimizer in (real, real.inner):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    fitted.trainer.strategy.optimizers = [real]
    fitted.own = real if held == "by the module" else None
    tensor = OF_AN_OPTIMIZER[what](real, weight)
    before = tensor.clone()
    twin = Twin(fitted)
    module = twin.module
    for _ in range(2):
        optimizer = HELD[held](module)
        reached = OF_AN_OPTIMIZER[what](optimizer, module.layer.weight)
        assert torch.equal(reached, before)
        reached.data.mul_(0).sub_(1)
        reached.mul_(2)
        optimizer.defaults["lr"] = 3
        optimizer.register_step_post_hook(print)
        assert (OF_AN_OPTIMIZER[what](optimizer, module.layer.weight) == -2).all()
        twin.forget()
    assert torch.equal(tensor, before)
    assert real.defaults["lr"] != 3
    assert not real._optimizer_step_post_hooks
    gc.collect()
    ended = len(Wraps.ended)
    del twin, module, optimizer
    gc.collect()
    assert len(Wraps.ended) == ended


def test_an_optimizer_that_is_only_read_costs_no_copy_of_its_state():
    net = Net()
    net.own = torch.optim.Adam(net.parameters())
    net.layer.weight.grad = torch.ones_like(net.layer.weight)
    net.own.step()
    twin = Twin(net)
    before = len(twin._copier.made)
    assert twin.module.own.param_groups[0]["lr"] == 1e-3
    assert len(twin.module.own.state) == 1
    assert len(twin._copier.made) == before


class Corrects(Net):
    """Writes to its data."""

    def training_step(self, batch, batch_idx):
        self.trainer.train_dataloader.dataset.weights[batch[1]] = 1.0
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [Sharpness, LayerCKA])
def test_write_to_data_too_large_to_copy_is_refused_before_the_first_step(kind, monkeypatch):
    monkeypatch.setattr(twins, "_LARGEST", 1_000)
    module, data = Corrects(), TensorDataset(torch.randn(12, 3), torch.arange(12))
    data.weights = torch.zeros(1_000)
    before = module.layer.weight.detach().clone()
    probe = kind(schedule=EveryNSteps(2), num_samples=12)
    expected = r"wrote to a tensor of 0 MB at 'trainer.train_dataloader.dataset.weights', too large.*loss_fn="
    with pytest.raises(MisconfigurationException, match=expected):
        trainer(max_epochs=1, callbacks=[probe]).fit(module, DataLoader(data, 4))
    assert torch.equal(module.layer.weight, before)


class Hides(Net):
    """Writes to its data in a way that leaves no trace at the tensor."""

    def training_step(self, batch, batch_idx):
        weights = self.trainer.train_dataloader.dataset.weights
        if self.by == "data":
            weights.data[batch[1]] = float("nan")
        elif self.by == "numpy":
            weights.numpy()[batch[1]] = 1
        else:
            weights[batch[1]] = 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("by", ["data", "numpy", "item"])
def test_a_write_to_data_too_large_to_copy_is_noticed_however_it_was_made(by, on_error, monkeypatch):
    monkeypatch.setattr(twins, "_LARGEST", 1_000)
    module, data, steps = Hides(), TensorDataset(torch.randn(12, 3), torch.arange(12)), []
    module.by, data.weights = by, torch.zeros(1_000)
    module.on_train_batch_start = lambda *_: steps.append(data.weights.clone())
    probe = Sharpness(schedule=EveryNSteps(2), num_samples=12, on_error=on_error)
    fit = partial(trainer(max_epochs=1, callbacks=[probe]).fit, module, DataLoader(data, 4))
    if on_error == "warn":
        with pytest.warns(UserWarning, match="wrote to a tensor of 0 MB.*which was put back"):
            fit()
        assert not steps[0].any()
        assert len(steps) == 3
    else:
        with pytest.raises(MisconfigurationException, match=r"wrote to a tensor of 0 MB.*changed in training too"):
            fit()
    assert not probe.history


def test_data_beyond_what_can_be_read_in_time_is_watched_by_its_version(monkeypatch):
    monkeypatch.setattr(writes, "_MOST_DATA", 5_000)
    first, second = torch.zeros(1_000), torch.zeros(1_000)

    @writes.unwritten(nn.Linear(1, 1), keep=False)
    def write_to(*tensors):
        writes.watch_data("the first", first)
        writes.watch_data("the first again", first)
        writes.watch_data("the second", second)
        for tensor in tensors:
            tensor.data.add_(1)

    write_to(second)
    with pytest.raises(MisconfigurationException, match="wrote to the first,"):
        write_to(second, first)


def test_a_large_tensor_that_is_no_data_is_copied_wherever_it_hangs(monkeypatch):
    monkeypatch.setattr(twins, "_LARGEST", 1_000)
    net = Net()
    net.bank, net.banks = SimpleNamespace(features=torch.zeros(1_000)), {"features": torch.zeros(1_000)}
    copied = Twin(net).module
    copied.bank.features.data.add_(1)
    copied.banks["features"].data.add_(1)
    assert not net.bank.features.any()
    assert not net.banks["features"].any()


def test_large_array_of_data_is_shared_for_reading(monkeypatch):
    monkeypatch.setattr(twins, "_LARGEST", 1_000)

    class Arrays(Dataset):
        def __init__(self):
            self.images, self.labels = np.zeros(2_000, dtype=np.uint8), np.zeros(100, dtype=np.uint8)

    net = Net()
    net.data = Arrays()
    copied = Twin(net).module.data
    copied.labels[0] = 1
    assert net.data.labels[0] == 0
    assert np.shares_memory(copied.images, net.data.images)
    with pytest.raises(ValueError, match="read-only"):
        copied.images[0] = 1


def test_flags_gradients_and_hooks_of_parameters_are_forgotten():
    net = Net()
    twin = Twin(net)
    weight = twin.module.layer.weight
    for _ in range(2):
        weight.register_hook(lambda gradient: gradient * 2)
        twin.module.layer(torch.ones(1, 3)).sum().backward()
        assert (weight.grad == 2).all()
        twin.module.requires_grad_(False)
        twin.forget()
        assert weight.grad is None
        assert weight.requires_grad
    assert net.layer.weight.grad is None
