"""What users do around a fit: fit again, pickle, give data of their own, skip batches."""

from __future__ import annotations

import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_probes import (
    AtFitEnd,
    EveryNEpochs,
    EveryNSteps,
    FisherTrace,
    InitInterpolation,
    LayerCKA,
    Probe,
    Sharpness,
)
from lightning_probes.probing.run.settings import settings_of
from tests.callbacks.models import Supervised, classification, loader, trainer

KINDS = (FisherTrace, InitInterpolation, LayerCKA, Sharpness)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_probe_can_be_pickled_as_spawned_processes_need(kind: type[Probe]) -> None:
    probe = kind(num_samples=16, schedule=AtFitEnd())
    assert pickle.loads(pickle.dumps(probe)).name == probe.name


def test_same_trainer_fitted_on_other_data_compares_layers_on_those() -> None:
    probe = LayerCKA(data="train", schedule=AtFitEnd())
    fitted, module = trainer(max_epochs=1, callbacks=[probe]), Supervised(network())
    fitted.fit(module, loader(*classification()))
    other = loader(*classification(samples=96, seed=5))
    fitted.fit_loop.max_epochs = 2
    fitted.fit(module, other)
    fresh = LayerCKA(data="train").evaluate(module, other, init_state=probe.progress.log.initial)
    assert probe.history[-1]["cka/to_init_mean"] == pytest.approx(fresh["cka/to_init_mean"].value, abs=1e-5)


class Validated(Supervised):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


def test_two_loaders_of_ones_own_stand_for_training_and_validation_data() -> None:
    (x, y), (u, v) = classification(), classification(seed=1)
    module = Supervised(network())
    probe = InitInterpolation(data=(loader(x, y), loader(u, v)), num_alphas=2, schedule=AtFitEnd())
    trainer(max_epochs=1, callbacks=[probe]).fit(module, loader(x, y))
    for key, (inputs, targets) in {"loss": (x, y), "val/loss": (u, v)}.items():
        expected = float(cross_entropy(module(inputs), targets).detach())
        assert probe.results[f"interpolation/{key}"].y[-1] == pytest.approx(expected, rel=1e-5)


def test_training_data_come_first_in_whatever_order_they_are_asked_for() -> None:
    (x, y), (u, v) = classification(), classification(seed=1)
    module = Validated(network())
    probe = InitInterpolation(data=("val", "train"), num_alphas=2, schedule=AtFitEnd())
    trainer(max_epochs=1, callbacks=[probe]).fit(module, loader(x, y), loader(u, v))
    expected = float(cross_entropy(module(x), y).detach())
    assert probe.results["interpolation/loss"].y[-1] == pytest.approx(expected, rel=1e-5)


def test_three_sources_are_refused_by_the_name_of_the_argument() -> None:
    data = loader(*classification())
    probe = InitInterpolation(data=(data, data, data))
    with pytest.raises(MisconfigurationException, match="data="):
        trainer(max_epochs=1, callbacks=[probe]).fit(Supervised(network()), data)


class OnDicts(Validated):
    """Trains on a dict of loaders, validates on one."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)


def test_validation_batches_that_training_step_does_not_take_are_left_out_by_default() -> None:
    data = loader(*classification())
    probes = [InitInterpolation(num_alphas=2), LayerCKA(), Sharpness()]
    trainer(max_epochs=1, callbacks=probes).fit(OnDicts(network()), {"a": data, "b": data}, data)
    assert "interpolation/loss" in probes[0].results
    assert "interpolation/val/loss" not in probes[0].results
    assert "cka/layers" in probes[1].results
    assert sum("left out" in said or "training data" in said for probe in probes for said in probe.say.said) == 2


def test_asked_for_explicitly_they_are_refused_by_the_name_of_the_argument() -> None:
    data = loader(*classification())
    probe = InitInterpolation(data="val")
    with pytest.raises(MisconfigurationException, match=r"loss_fn=.*data="):
        trainer(max_epochs=1, callbacks=[probe]).fit(OnDicts(network()), {"a": data, "b": data}, data)


class Skipping(Supervised):
    """Skips batches from the third step on, as some do where the loss is not finite."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return loss if self.trainer.global_step < 2 else None


@pytest.mark.parametrize("kind", [InitInterpolation, LayerCKA, Sharpness])
def test_skipped_batch_has_no_loss_and_training_goes_on(kind: type[Probe]) -> None:
    probe = kind(schedule=[EveryNSteps(1), AtFitEnd()])
    fitted = trainer(max_epochs=2, callbacks=[probe])
    fitted.fit(Skipping(network()), loader(*classification()))
    assert fitted.current_epoch == 2
    flags = [entry[f"{probe.name}/flag/nonfinite"] for entry in probe.history]
    assert flags[0] == 0.0
    assert flags[-1] == float(kind is not LayerCKA)  # whose layers ran all the same
    assert "sharpness/lambda_max" not in probe.history[-1]


def test_settings_tell_a_state_dict_by_its_size() -> None:
    module = Supervised(network())
    probe = InitInterpolation(init_state=module.state_dict(), schedule=AtFitEnd(), num_alphas=2)
    fitted = trainer(max_epochs=1, callbacks=[probe])
    fitted.fit(module, loader(*classification()))
    settings = settings_of(probe, {}, fitted)
    assert settings["init_state"] == "OrderedDict of 4 entries"
    assert settings["batch_norm"] == "recalibrate"
    assert settings_of(Sharpness(), {}, fitted)["batch_norm"] == "eval"


def test_nothing_is_reported_where_the_initialisation_is_not_known() -> None:
    class Late(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = 3  # as in a run that was resumed

    probe = InitInterpolation(schedule=AtFitEnd())
    trainer(max_epochs=1, callbacks=[Late(), probe]).fit(Supervised(network()), loader(*classification()))
    assert probe.history == []
    assert any("init_state=" in said for said in probe.say.said)


class Penalised(Supervised):
    """Keeps a parameter in a plain list too, and penalises it from there."""

    def __init__(self) -> None:
        super().__init__(network())
        self.penalised = [self.net[0].weight]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 10 * self.penalised[0].square().sum()


def test_parameters_that_a_list_refers_to_move_with_those_of_the_module() -> None:
    x, y = classification()
    module = Penalised()

    def loss(module: Any, batch: Any) -> Tensor:
        return cross_entropy(module(batch[0]), batch[1]) + 10 * module.net[0].weight.square().sum()

    referred, direct = (Sharpness(loss_fn=fn).evaluate(module, loader(x, y)) for fn in (None, loss))
    for key in ("sharpness/lambda_max", "sharpness/sam"):
        assert referred[key].value == pytest.approx(direct[key].value, rel=1e-5)
    assert referred["sharpness/lambda_max"].value > 20  # the penalty's own curvature


class Counting(pl.LightningDataModule):
    """Counts the batches it moves to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def train_dataloader(self) -> Any:
        return loader(*classification())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.moved += 1
        return batch


def test_transfer_hooks_of_the_data_module_run_on_a_double() -> None:
    datamodule = Counting()
    probe = Sharpness(num_samples=16)
    trainer(max_epochs=1, callbacks=[probe]).fit(Supervised(network()), datamodule=datamodule)
    assert len(probe.history) > 1
    assert datamodule.moved == 4


class Grows(pl.Callback):
    """Adds a layer in the second epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.net.append(nn.Linear(3, 3))
            trainer.optimizers[0].add_param_group({"params": list(pl_module.net[-1].parameters())})


@pytest.mark.parametrize("change", [lambda: ModelPruning("l1_unstructured", amount=0.3), Grows])
def test_module_whose_parameters_change_is_measured_as_it_is_now(change: Any) -> None:
    probes = [kind(schedule=[EveryNEpochs(1)]) for kind in (FisherTrace, InitInterpolation, LayerCKA, Sharpness)]
    with pytest.warns(UserWarning, match="there is no line to the current parameters"):
        trainer(max_epochs=2, callbacks=[*probes, change()]).fit(Supervised(network()), loader(*classification()))
    assert all(len(probe.history) == 2 for probe in probes if probe.name != "interpolation")
