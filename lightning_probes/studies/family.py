"""The trainings of an instability study, and what is measured between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch.nn import UninitializedBuffer, UninitializedParameter

from lightning_probes.callbacks.paths.mode_connectivity import ModeConnectivity
from lightning_probes.probing.run.init_state import StateDict, load_state
from lightning_probes.probing.run.spawning import train_child, train_parent
from lightning_probes.probing.run.trial import Plan, digest, planned, seed_all, shared
from lightning_probes.probing.schedules import AtFitEnd
from lightning_probes.replay import replay
from lightning_probes.results import Curve, Scalar
from lightning_probes.studies.folder import Folder

PARENT = "parent"


@dataclass(frozen=True)
class Family:
    """One parent and children that part from it, as the user's functions make them.

    Args:
        make_trainer: See `instability`.
        make_module: See `instability`.
        make_data: See `instability`.
        seed: See `instability`.
        connectivity: See `instability`.
        folder: Where finished parts are kept.
        group: The group of W&B runs.
    """

    make_trainer: Callable[[], Trainer]
    make_module: Callable[[], LightningModule]
    make_data: Callable[[int], Any]
    seed: int
    connectivity: Mapping[str, Any]
    folder: Folder
    group: str = ""

    def start(self, step: int) -> Path:
        """The parent's checkpoint at a step."""
        return self.folder.path / f"step-{step}.ckpt"

    def end(self, step: int, seed: int) -> Path:
        """The checkpoint at the end of a child."""
        return self.folder.path / f"{child_name(step, seed)}.ckpt"

    def train_parent(self, steps: tuple[int, ...]) -> None:
        """Train the parent up to the last spawn step."""
        places = {step: self.start(step) for step in steps}
        facts = train_parent(*self._parts(self.seed), places, self.seed, (self.group, PARENT))
        self.folder.finish(PARENT, {"spawn_step": None, "seed": self.seed, **facts})

    def train_child(self, step: int, seed: int) -> None:
        """Train a child from a spawn step to the end."""
        name = child_name(step, seed)
        parts, places = self._parts(seed), (self.start(step), self.end(step, seed))
        facts = train_child(*parts, *places, seed, (self.group, name))
        self.folder.finish(name, {"spawn_step": step, "seed": seed, **facts})

    def measure(self, step: int, first: int, second: int) -> None:
        """Measure the barrier between the ends of two children."""
        orders = [self.folder.finished(child_name(step, seed))["batches"] for seed in (first, second)]
        if orders[0] == orders[1]:
            raise RuntimeError(
                f"the children of step {step} with seeds {first} and {second} were trained on the same first batches, "
                "because the state_dict of the data module puts the parent's order back: leave the order out of it"
            )
        self.folder.finish(pair_name(step, first, second), self.between(step, first, second))

    def between(self, step: int, first: int, second: int) -> dict[str, Any]:
        """The row of a pair of children."""
        trainer, module, data = self._parts(self.seed)
        ends = [load_state(self.end(step, seed), module, "end") for seed in (first, second)]
        start = load_state(self.start(step), module, "start")
        probe = self.probe(ends[1])
        replay([probe], module, self.end(step, first), data, logger=[], trainer=trainer, keep=False)
        names = dict(module.named_parameters())
        travelled = sum(_distance(start, end, names) for end in ends) / 2
        return {
            "spawn_step": step,
            "seed_first": first,
            "seed_second": second,
            **_numbers(probe),
            "travelled": travelled if math.isfinite(travelled) else None,
        }

    def probe(self, other: Any) -> ModeConnectivity:
        """What measures between this run and another one."""
        return ModeConnectivity(other, schedule=AtFitEnd(), **self.connectivity)

    def plan(self, seed: int, checks: bool = False) -> Plan:
        """What a training with this seed would do; with `checks`, also whether the barrier can be measured."""
        trainer, module, data = self._parts(seed)
        return planned(trainer, module, data, seed, [self.probe(module)] if checks else ())

    def initial(self) -> str:
        """A hash of the initialisation.

        Raises:
            MisconfigurationException: If a function does not make a new object at each call, or the initialisation does
                not follow from the seed.
        """
        trainers = [self.make_trainer() for _ in range(2)]
        modules = []
        for _ in range(2):
            seed_all(self.seed)
            modules.append(self.make_module())
        common = shared(*trainers)
        if common or modules[0] is modules[1]:
            name, each = ("make_trainer", common[0]) if common else ("make_module", modules[0])
            raise MisconfigurationException(
                f"{name} gives the same {type(each).__name__} at each call, but every training needs its own: make it "
                f"inside {name}"
            )
        states = [digest(_initialised(module)) for module in modules]
        if states[0] != states[1]:
            raise MisconfigurationException(
                "make_module gives other weights at each call, though all generators are seeded before, so a study "
                "that was interrupted would not continue with the same ones: draw them from seeded generators"
            )
        return states[0]

    def _parts(self, seed: int) -> tuple[Trainer, LightningModule, Any]:
        """A Trainer, a module with the study's initialisation, and data in the order of a seed."""
        seed_all(self.seed)
        trainer, module = self.make_trainer(), self.make_module()
        seed_all(seed)
        return trainer, module, self.make_data(seed)


def child_name(step: int, seed: int) -> str:
    """The name of a child's training."""
    return f"step-{step}-seed-{seed}"


def pair_name(step: int, first: int, second: int) -> str:
    """The name of what is measured between two children."""
    return f"step-{step}-seeds-{first}-{second}"


def _initialised(module: LightningModule) -> StateDict:
    lazy = (UninitializedParameter, UninitializedBuffer)
    return {name: value for name, value in module.state_dict().items() if not isinstance(value, lazy)}


def _distance(start: StateDict, end: StateDict, names: Mapping[str, Any]) -> float:
    return math.sqrt(sum(float((end[name].double() - start[name].double()).square().sum()) for name in names))


def _numbers(probe: ModeConnectivity) -> dict[str, float | None]:
    """The results of a measurement under their keys; None for what is not finite."""
    found: dict[str, float | None] = {}
    prefix = f"{probe.name}/"
    for key, result in probe.results.items():
        name = key.removeprefix(prefix)
        if isinstance(result, Scalar):
            found[name] = result.value if math.isfinite(result.value) else None
            if result.standard_error is not None:
                found[f"{name}_se"] = result.standard_error
        elif isinstance(result, Curve) and name in ("loss", "error", "val/loss", "val/error"):
            for end, value in (("first", result.y[0]), ("second", result.y[-1])):
                found[f"{name}_{end}"] = float(value) if math.isfinite(value) else None
    for key in found:  # a network whose outputs are not numbers has no error, either
        if "error_barrier" in key and found.get(key.replace("error_", "")) is None:
            found[key] = None
    return found
