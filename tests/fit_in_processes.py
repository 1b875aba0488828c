"""Fits with probes on several processes: `python -m tests.fit_in_processes DIRECTORY STRATEGY PROCESSES SCENARIO ...`.

Every process writes what it saw of each scenario to `DIRECTORY/<scenario>-<rank>.json`.
"""

from __future__ import annotations

import copy
import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from lightning_probes import (
    AtFitEnd,
    Curve,
    EveryNSteps,
    FisherPenalty,
    GradientNorms,
    Heatmap,
    Probe,
    Result,
    Scalar,
    Surface,
)
from lightning_probes.callbacks.paths.batch_norm import recalibrated_buffers
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.scheduled import Scheduled
from lightning_probes.testing.zoo import CASES, Fit
from lightning_probes.testing.zoo.modules import Supervised
from tests.callbacks.interventions.written import C, Written, made
from tests.complete import complete
from tests.exchanging import Centred, Contrastive, Disagreeing, Lopsided, Reduced, fit_of
from tests.kinds import GradientNorm, GradientScale, Spoils
from tests.tester import EVERY, PROBES, fit, probe

MAKE = CASES["cnn"].make
Observe = Callable[[L.Trainer], dict[str, Any]]


class Writes(L.Callback):
    """Writes down what its process has when the fit ends, in whatever way: spawned processes give nothing back."""

    def __init__(self, path: Path, observe: Observe) -> None:
        self.path = path
        self.observe = observe

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.write(trainer, error="")

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.write(trainer, error=f"{type(exception).__name__}: {exception}")

    def write(self, trainer: L.Trainer, error: str) -> None:
        weights = [float(p.detach().double().sum()) for p in trainer.lightning_module.parameters()]
        content = {"error": error, "weights": weights, "steps": trainer.global_step, **self.observe(trainer)}
        path = self.path.with_name(f"{self.path.name}-{trainer.global_rank}.json")
        path.write_text(json.dumps(content))


def measured(trainer: L.Trainer) -> dict[str, Any]:
    probes = [callback for callback in trainer.callbacks if isinstance(callback, Scheduled)]
    results = {key: result for each in probes for key, result in each.results.items()}
    arrays = {
        key: (result.y if isinstance(result, Curve) else result.values).tolist()
        for key, result in results.items()
        if isinstance(result, (Curve, Heatmap, Surface))
    }
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key}
    sets = {each.name: each.runner.data for each in probes if isinstance(each, Probe)}
    shares = {name: len(found["train"].batches) for name, found in sets.items() if "train" in found}
    sizes = {name: {split: [*each.sizes] for split, each in found.items()} for name, found in sets.items()}
    said = [line for each in probes for line in each.say.said]
    told = sum(getattr(logger, "told", 0) for logger in trainer.loggers)
    steps = {each.name: [row["step"] for row in each.history] for each in probes}
    found = {"metrics": metrics, "arrays": arrays, "shares": shares, "sizes": sizes}
    return {**found, "said": said, "told": told, "measured": steps}


def every(samples: int) -> list[Probe]:
    """At step 0, since after it one process and two train on batches of different sizes; the line starts elsewhere."""
    start = MAKE().module
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(0.5)
    arguments: dict[str, dict[str, Any]] = {
        "fisher": {"per_layer": True},
        "sharpness": {"quantities": ("lambda_max", "sam", "trace"), "per_layer": True},
        "interpolation": {"init_state": start.state_dict()},
        "cka": {"init_state": start.state_dict(), "per_layer": True},
        "connectivity": {"init_state": start.state_dict(), "align": "activations", "repair": True, "cross": True},
        "plane": {"batch_norm": "recalibrate"},
        "dropout": {"per_layer": True},
        "linear": {"per_layer": True},
    }
    shared: dict[str, Any] = {"num_samples": samples, "data": "train", "schedule": EveryNSteps(1, stop=0)}
    return [probe(kind, **shared, **arguments.get(kind, {})) for kind in PROBES]


def of_blocks() -> list[Probe]:
    """Of residual additions and attention: medians over samples, and sums over queries."""
    shared: dict[str, Any] = {"num_samples": 20, "data": "train", "schedule": EveryNSteps(1, stop=0)}
    return [probe(kind, **shared) for kind in ("gradient_flow", *sorted(EVERY.keys() - PROBES.keys()))]


def planes_and_paths() -> list[Probe]:
    """Of which a path is found at the end of the fit alone: see `at_rest`."""
    shared: dict[str, Any] = {"num_samples": 24, "data": "train", "schedule": AtFitEnd()}
    states = [CASES["cnn"].make().module.state_dict() for _ in range(3)]
    path: dict[str, Any] = {"path_steps": 8, **shared}
    return [
        probe("plane", name="trajectory", directions="trajectory", checkpoints=states, **shared),
        probe("plane", name="triangle", directions="checkpoints", checkpoints=states[:2], **shared),
        probe("connectivity", name="bezier", path="bezier", **path),
        probe("connectivity", name="string", path="string", align="weights", **path),
    ]


def at_rest() -> Fit:
    """With a learning rate of 0 and no momentum, so that one process and several end with the same state."""
    made = MAKE()
    for module in made.module.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    return Fit(Supervised(made.module.net, lr=0.0), made.train, made.val)


def of_its_own_checkpoints() -> list[Any]:
    saves = ModelCheckpoint(filename="{step}", every_n_train_steps=1, save_top_k=-1)
    return [probe("plane", directions="trajectory", data="train", schedule=AtFitEnd()), saves]


class OneFails(Probe):
    """Sums over processes, and does something to one of them in between, at step 1."""

    def __init__(self, do: Callable[[Any], object], rank: int = 1, on_error: Any = "raise") -> None:
        super().__init__(
            name="fails", schedule=EveryNSteps(1), data="train", num_samples=16, micro_batch_size=8, on_error=on_error
        )
        self.do = do
        self.rank = rank

    def divisible(self, pairs: Any, singles: Any) -> bool:
        return True

    def measure(self, view: Any) -> Iterator[Result]:
        total = view.mean_loss(view.params)
        if view.step == 1 and view.processes.rank == self.rank:
            self.do(view)
        yield Scalar("loss", float(view.mean_loss(view.params)))
        yield Scalar("total", float(total))


class Synchronised(Probe):
    """Re-estimates BatchNorm, and the SyncBatchNorm made of it, which does not train on CPU."""

    def __init__(self) -> None:
        super().__init__(name="sync", schedule=EveryNSteps(1), data="train", num_samples=20, micro_batch_size=8)

    def measure(self, view: Any) -> Iterator[Result]:
        torch.manual_seed(1)
        plain = MAKE().module
        synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
        for name, module in (("plain", plain), ("synchronised", synchronised)):
            own = replace(view, twin=Twin(module.train()))
            yield Scalar(name, float(own.mean_loss(recalibrated_buffers(own, {}))))
            yield Scalar(f"{name}_old", float(own.mean_loss({})))


class Saves(L.Callback):
    """In every process, as Lightning asks; at step 1."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "1.ckpt"))


class Counts(Logger):
    """Counts what each process tells it about a probe; other loggers do not listen to any but the first."""

    name = version = "counts"
    told = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.told += any(key.startswith("sync/") for key in metrics)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def out_of_luck(_: Any) -> None:
    raise RuntimeError("out of luck")


def interrupted(_: Any) -> None:
    signal.raise_signal(signal.SIGINT)


def out_of_memory(view: Any) -> None:
    if max(view.probe_set().sizes) > 4:
        raise torch.OutOfMemoryError("tried to allocate a lot")


def without_label_2(module: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], ignore_index=2)


def without_label_2_in_all_but_one(module: Any, batch: Any) -> torch.Tensor:
    if dist.get_rank() == 1:
        raise RuntimeError("no loss here")
    return without_label_2(module, batch)


def fails_in_one(step: int) -> None:
    if step == 1 and dist.get_rank() == 1:
        raise RuntimeError("out of luck")


def nothing(_: Any) -> None:
    pass


def exchanging(kinds: tuple[str, ...] = tuple(PROBES), **arguments: Any) -> list[Probe]:
    many = {"num_samples": 40, "micro_batch_size": 4, "schedule": EveryNSteps(1), **arguments}
    return [probe(kind, **many) for kind in kinds]


AS_ALONE = ("even", "uneven", "one without samples")
MEASURING = (*AS_ALONE, "planes and paths", "blocks")
SCENARIOS: dict[str, Callable[[], list[Any]]] = {
    "even": lambda: every(24),
    "uneven": lambda: every(20),
    "one without samples": lambda: every(16),
    "planes and paths": planes_and_paths,
    "blocks": of_blocks,
    "its own checkpoints": of_its_own_checkpoints,
    "fails": lambda: [OneFails(out_of_luck)],
    "first fails": lambda: [OneFails(out_of_luck, rank=0)],
    "fails, warns": lambda: [OneFails(out_of_luck, on_error="warn")],
    "interrupted": lambda: [OneFails(interrupted, on_error="warn")],
    "out of memory": lambda: [OneFails(out_of_memory)],
    "synchronised": lambda: [Synchronised()],
    "breaks off": lambda: [probe("fisher", num_samples=16, schedule=EveryNSteps(1))],
    "goes on": lambda: [probe("fisher", num_samples=16, schedule=EveryNSteps(1))],
    "reads": lambda: [probe("fisher", loss_fn=without_label_2, schedule=EveryNSteps(1, stop=0))],
    "reads in all but one": lambda: [
        probe("fisher", loss_fn=without_label_2_in_all_but_one, schedule=EveryNSteps(1, stop=0))
    ],
    "monitored": lambda: [GradientNorm(schedule=EveryNSteps(1)), GradientNorms(name="norms", schedule=EveryNSteps(1))],
    "monitored, fails, warns": lambda: [Spoils(fails_in_one, on_error="warn")],
    "scaled by one": lambda: [GradientScale(1.0)],
    "penalised": lambda: [FisherPenalty(C, every=1, schedule=EveryNSteps(1))],
    "penalised by hand": list,
    "not penalised": list,
    "nothing happens": lambda: [OneFails(nothing)],
    "contrastive": exchanging,
    "contrastive, no probe": list,
    "contrastive, too few samples": lambda: exchanging(("sharpness",), num_samples=2),
    "centred": exchanging,
    "lopsided": lambda: exchanging(("sharpness",)),
    "reduced": exchanging,
    "disagreeing": lambda: [
        *exchanging(("dropout",)),
        *exchanging(("connectivity",), align="weights"),
    ],
    "shards": lambda: exchanging(("interpolation", "cka", "linear"), micro_batch_size=None),
    "contrastive shards": lambda: exchanging(("interpolation", "cka"), micro_batch_size=None),
    "one shard is empty": lambda: exchanging(("interpolation", "cka"), micro_batch_size=None),
}
MAKES: dict[str, Callable[[], Fit]] = {
    "planes and paths": at_rest,
    "blocks": complete,
    "disagreeing": partial(fit_of, Disagreeing),
    "penalised": made,
    "penalised by hand": partial(made, Written),
    "not penalised": made,
    "centred": partial(fit_of, Centred),
    "lopsided": partial(fit_of, Lopsided),
    "reduced": partial(fit_of, Reduced),
    "shards": partial(fit_of, Supervised, 40, 12, 7),
    "contrastive shards": partial(fit_of, Contrastive, 40, 12, 7),
    "one shard is empty": partial(fit_of, Supervised, 40, 12, 0),
}


def run(directory: Path, scenario: str, **strategy: Any) -> None:
    torch.manual_seed(0)
    handler = signal.getsignal(signal.SIGINT)
    arguments = {**strategy, "max_steps": 1 if scenario in MEASURING else 3, "num_sanity_val_steps": 0}
    if scenario == "its own checkpoints":
        arguments["max_epochs"] = 2  # of two steps each
    with suppress(RuntimeError, SystemExit, MisconfigurationException):
        callbacks = [*SCENARIOS[scenario](), Writes(directory / scenario, measured)]
        if scenario == "breaks off":
            callbacks.append(Saves())
        if scenario == "goes on":
            arguments["ckpt_path"] = directory / "1.ckpt"
        make = MAKES.get(scenario, partial(fit_of, Contrastive) if "contrastive" in scenario else MAKE)
        saves = any(isinstance(each, ModelCheckpoint) for each in callbacks)
        fit(make, callbacks, directory, logger=Counts(), enable_checkpointing=saves, **arguments)
    signal.signal(signal.SIGINT, handler)  # which Lightning turns off for the rest of the process


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[4:]:
        run(Path(sys.argv[1]), each, strategy=sys.argv[2], devices=int(sys.argv[3]))
    if dist.is_initialized():  # gloo's threads that outlive the interpreter can abort the process as it ends
        gc.collect()
        dist.destroy_process_group()
