"""All of a fit but the training: everything is set up and looked at, and the fit ends before its first step."""

from __future__ import annotations

import hashlib
import pickle
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_probes.probing.run.fit_arguments import fit_arguments
from lightning_probes.probing.run.going_over import alone
from lightning_probes.probing.run.trainer import TrainerRun

FIRST_BATCHES = 8
"""How many batches tell one order of the data from another."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Plan:
    """What a fit would do.

    Attributes:
        steps: The number of its optimizer steps; infinite if nothing but a callback ends it.
        batches: A hash of its first batches.
        optimizers: Classes and hyper-parameters of its optimizers.
        trainer: Settings of its Trainer that change the numbers.
    """

    steps: float
    batches: str
    optimizers: str
    trainer: str


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, and leave the environment alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def planned(trainer: Trainer, module: LightningModule, data: Any, seed: int, probes: Sequence[Any] = ()) -> Plan:
    """Set up a fit, with the checks that probes make before the first step, and end it there. Nothing is logged.

    Args:
        trainer: A Trainer for this purpose alone.
        module: Its module; its hooks up to `on_train_epoch_start` are called.
        data: Its data, see `fit_arguments`.
        seed: Seeds the generators before the first batches are read.
        probes: Probes that are to measure such a module later.

    Raises:
        MisconfigurationException: If the Trainer has several processes.
    """
    if trainer.world_size > 1:
        raise MisconfigurationException(
            f"a study drives Trainers of one process each, got one of {trainer.world_size}: make it with devices=1, "
            "and pass processes= to run several trainings side by side"
        )
    looks = _Looks(seed, probes)
    trainer.loggers = [DummyLogger()]
    with alone(trainer, looks):
        trainer.fit(module, **fit_arguments(data))
    if looks.plan is None:
        raise MisconfigurationException(
            "the Trainer has no training batch: pass data with at least one in make_data, and a Trainer that trains"
        )
    return looks.plan


def shared(first: Any, second: Any) -> list[Any]:
    """What two Trainers have in common: themselves, and callbacks and loggers, which keep the state of a run."""
    others = [second, *second.callbacks, *second.loggers]
    return [each for each in (first, *first.callbacks, *first.loggers) if any(each is other for other in others)]


class _WithoutFiles(TrainerRun):
    """Nothing is measured, so there is nothing to keep."""

    files = None


class _Looks(Callback):
    def __init__(self, seed: int, probes: Sequence[Any]) -> None:
        self._seed, self._probes = seed, probes
        self.plan: Plan | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and end the fit: Lightning's loops end at a StopIteration."""
        for probe in self._probes:
            probe.begin(_WithoutFiles(trainer, pl_module))
        seed_all(self._seed)
        loaders = CombinedLoader(trainer.train_dataloader, "max_size_cycle")
        first = [digest(batch) for batch, _, _ in islice(iter(loaders), FIRST_BATCHES)]
        groups = [
            {"optimizer": type(each).__name__, **{name: value for name, value in group.items() if name != "params"}}
            for each in trainer.optimizers
            for group in each.param_groups
        ]
        settings = {
            name: getattr(trainer, name)
            for name in ("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
        }
        described = (_ADDRESS.sub("", repr(each)) for each in (groups, settings))
        self.plan = Plan(trainer.estimated_stepping_batches, together(first), *described)
        raise StopIteration


def together(digests: Sequence[str]) -> str:
    """One hash for several."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def digest(batch: Any) -> str:
    """A hash of all that a batch, or a state dict, holds."""
    content = hashlib.sha256()
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            plain = leaf.detach().cpu().contiguous()
            content.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
            content.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        else:
            content.update(_pickled(leaf))
    return content.hexdigest()


def _pickled(leaf: Any) -> bytes:
    try:
        return pickle.dumps(leaf)
    except Exception:  # objects raise errors of many kinds
        return type(leaf).__name__.encode()
