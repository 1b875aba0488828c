"""The ways of training that every probe is tried on, by the name of their row in the README."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from torch import nn
from torch.utils.data import TensorDataset

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNSteps
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.data import Mapped, Stream, augmented, draws, labelled, loader, normal
from lightning_probes.testing.zoo.modules import OnLoaders, Supervised, mlp
from tests.complete import network as complete_network
from tests.tester import EVERY, REFUSES, told
from tests.ways import modules, surroundings
from tests.ways.isolations import ISOLATIONS
from tests.ways.modules import CountsReads
from tests.ways.surroundings import HardestFirst
from tests.ways.way import (
    SavesInMidStep,
    Way,
    fits_with_the_same_probes,
    of_the_other_namespace,
    one_trainer_after_the_other,
    validation_alone,
)

__all__ = ["ISOLATIONS", "WAYS", "Way"]


# A probe that measures after checkpoints may do so while gradients are accumulated.
AFTER_SAVES = {kind: {"schedule": [EveryNSteps(3, stop=3), AtCheckpoints(1.0), AtFitEnd()]} for kind in EVERY}


def needs(case: str) -> dict[str, dict[str, Any]]:
    return {kind: told(case, kind) for kind in EVERY}


def refusing(case: str) -> frozenset[str]:
    return frozenset(kind for kind, cases in REFUSES.items() if case in cases)


def fitting(module: Callable[[], L.LightningModule], train: Callable[[], Any] = lambda: loader(labelled(4))) -> Any:
    """Makes a module, its training data, and three batches to validate on."""
    return lambda: Fit(module(), train(), loader(labelled(4, samples=24, seed=1), shuffle=False))


def network(make: Callable[[], nn.Module] = mlp, **arguments: Any) -> Any:
    return fitting(lambda: Supervised(make(), **arguments))


def reading(train: Callable[[], Any]) -> Any:
    return fitting(lambda: Supervised(mlp()), train)


def in_workers(**arguments: Any) -> Any:
    return reading(lambda: loader(Mapped(labelled(4), augmented), num_workers=1, **arguments))


def counted(**arguments: Any) -> Any:
    return loader(CountsReads(labelled(4)), **arguments)


def dict_of_loaders() -> Fit:
    unlabelled = TensorDataset(normal(40, 4, seed=3))
    train = {"labelled": loader(labelled(4), generator=draws(1)), "unlabelled": loader(unlabelled, generator=draws(2))}
    return Fit(OnLoaders(mlp()), train, loader(labelled(4, seed=1), shuffle=False))


def counted_validation() -> Fit:
    return Fit(Supervised(mlp()), loader(labelled(4)), counted(shuffle=False))


def compiled_module() -> Any:
    module = modules.Quiet()
    return torch.compile(module, backend=module.compiler)


def weight_norm() -> Fit:
    """Without validation, which would compute the weight anew from its parts."""
    return Fit(Supervised(modules.weight_norm()), loader(labelled(4)))


def blocks() -> Fit:
    images = [labelled(1, 8, 8, samples=samples, seed=seed) for samples, seed in ((40, 0), (24, 1))]
    return Fit(Supervised(complete_network()), loader(images[0]), loader(images[1], shuffle=False))


def in_train_mode() -> Fit:
    made = CASES["bert"].make()
    made.module.train()
    return made


WAYS: dict[str, Way] = {
    "dropout": Way(network(modules.dropout), "generators"),
    "BatchNorm": Way(network(modules.batch_norm), "module"),
    "BatchNorm, cumulative": Way(network(lambda: modules.batch_norm(None)), "module"),
    "shuffling by a generator of the loader": Way(
        reading(lambda: loader(labelled(4), generator=draws(3))), "samples"
    ),
    "workers that draw from numpy and `random`": Way(in_workers(), "generators"),
    "persistent workers": Way(in_workers(persistent_workers=True), "samples"),
    "a dataset with generators and a counter": Way(reading(counted), "samples"),
    "`IterableDataset` with a place": Way(reading(lambda: loader(Stream(labelled(4)))), "samples"),
    "a dict of loaders": Way(dict_of_loaders, "samples", told=needs("dict_of_train_loaders")),
    "gradient accumulation": Way(
        network(), "gradients", {"accumulate_grad_batches": 2}, lambda: [SavesInMidStep()], AFTER_SAVES,
        steps=(0, 1, 3, 4, 6),
    ),
    "`GradientAccumulationScheduler`": Way(
        network(), "gradients", callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 2}), SavesInMidStep()],
        told=AFTER_SAVES, steps=(0, 3, 6, 8),
    ),
    "gradient clipping": Way(network(), "gradients", {"gradient_clip_val": 0.1}),
    "torchmetrics per step and epoch": Way(fitting(modules.Metrics), "module"),
    "`self.log` of the training loss": Way(fitting(modules.Logs), "log"),
    "outputs collected for the end of the epoch": Way(fitting(modules.Collects), "module"),
    "moving averages in buffers, in hooks": Way(fitting(modules.Averages), "module"),
    "`EMAWeightAveraging`": Way(network(), "parameters", callbacks=lambda: [EMAWeightAveraging(decay=0.9)]),
    "`StochasticWeightAveraging`": Way(
        network(modules.batch_norm), "parameters", {"max_epochs": 3},
        lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1, annealing_epochs=1)],
        {kind: {"schedule": [EveryNSteps(5), AtFitEnd()]} for kind in EVERY}, steps=(0, 5, 10, 15, 16),
    ),
    "`BackboneFinetuning`": Way(
        fitting(modules.WithBackbone), "modes", callbacks=lambda: [BackboneFinetuning(1, initial_denom_lr=2.0)]
    ),
    "tied weights": Way(network(modules.Tied), "parameters"),
    "parameters that the loss does not use": Way(fitting(modules.Unused), "gradients"),
    "`nn.utils.parametrize`": Way(network(modules.parametrized), "module"),
    "the old `weight_norm`": Way(weight_norm, "module"),
    "manual optimisation: a GAN with two optimizers": Way(
        CASES["gan"].make, "generators", told=needs("gan"), refused_by=refusing("gan")
    ),
    "labels that `training_step` corrects in the dataset": Way(
        fitting(surroundings.CorrectsLabels, surroundings.numbered), "surroundings"
    ),
    "a sampler that `training_step` weights": Way(
        fitting(surroundings.Weighs, lambda: surroundings.numbered(sampler=HardestFirst(40), shuffle=None)),
        "surroundings",
    ),
    "a callback that `training_step` tells": Way(
        fitting(surroundings.Tells), "surroundings", callbacks=lambda: [surroundings.Hears()]
    ),
    "a `multiprocessing.Value`, an object with `__del__`": Way(fitting(surroundings.Counts), "surroundings"),
    "learning rate schedule per step": Way(fitting(modules.Schedules), "trainer"),
    "`ReduceLROnPlateau`": Way(fitting(modules.Plateau), "log", {"max_epochs": 3}, steps=(0, 3, 15)),
    "`bf16-mixed`": Way(network(), "precision", {"precision": "bf16-mixed"}),
    "`64-true`": Way(network(), "precision", {"precision": "64-true"}),
    "a compiled submodule": Way(fitting(modules.PartlyCompiled), "compiler"),
    "a compiled LightningModule": Way(fitting(compiled_module), "compiler"),
    "activation checkpointing (non-reentrant)": Way(network(modules.Checkpointed), "generators"),
    "`configure_model`": Way(fitting(modules.Configured), "module"),
    "a Hugging Face model in train mode": Way(in_train_mode, "generators", refused_by=refusing("bert")),
    "attention, skip connections and BatchNorm": Way(blocks, "module", refused_by=frozenset()),
    "the same with `bf16-mixed`": Way(blocks, "precision", {"precision": "bf16-mixed"}, refused_by=frozenset()),
    "several fits with the same probes": Way(
        network(modules.dropout), "watching", runs=fits_with_the_same_probes
    ),
    "two Trainers in one process": Way(network(modules.dropout), "kernels", runs=one_trainer_after_the_other),
    "the `pytorch_lightning` namespace": Way(
        fitting(modules.of_the_other_namespace), "module", runs=of_the_other_namespace
    ),
    "`trainer.validate` alone": Way(network(modules.batch_norm), "stage", steps=(), runs=validation_alone),
    "`val_check_interval` below 1": Way(counted_validation, "samples", {"val_check_interval": 0.4}),
    "`max_steps` in mid-epoch": Way(network(modules.dropout), "generators", {"max_steps": 7}, steps=(0, 3, 7)),
    "`fast_dev_run`": Way(network(modules.dropout), "generators", {"fast_dev_run": True}, steps=(0, 1)),
    "`overfit_batches`": Way(reading(counted), "samples", {"overfit_batches": 2}, steps=(0, 3, 4)),
    "`limit_train_batches`": Way(
        reading(lambda: loader(labelled(4), generator=draws(3))), "samples", {"limit_train_batches": 3}, steps=(0, 3, 6)
    ),
}  # fmt: skip
