"""The complete state after training, for comparing two runs.

`fingerprint` turns a run into a flat dict, and `assert_same` compares two of these dicts bit for bit. To compare
something more, add an entry to `fingerprint`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from lightning_probes.probing.scheduled import Scheduled
from lightning_probes.testing.digests import flatten
from lightning_probes.testing.fitting import Run
from lightning_probes.testing.surroundings import generators, settings

Flat = dict[str, str]


def fingerprint(run: Run) -> Flat:
    """Everything in a run that probes must not change: name to digest or value."""
    trainer: Any = run.trainer
    module = run.module
    names = {callback.name for callback in trainer.callbacks if isinstance(callback, Scheduled)}
    parts: dict[str, Any] = {
        **state_of(module),
        "optimizers": [_named_state(optimizer, module) for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "loaders": [_loader_state(loader) for loader in (run.fit.train, run.fit.val)],
        "datamodule": None if run.fit.datamodule is None else vars(run.fit.datamodule),
        "steps": run.recorder.steps,
        "metrics": {name: _of_the_user(getattr(trainer, name), names) for name in _METRICS},
        "progress": trainer.fit_loop.state_dict(),
        "trainer": [trainer.global_step, trainer.current_epoch, trainer.should_stop, sorted(vars(trainer))],
        "callbacks": {
            callback.state_key: [callback.state_dict(), _models(callback)]
            for callback in trainer.callbacks
            if not isinstance(callback, Scheduled)
        },
        "csv": [rows for path in sorted(run.directory.rglob("metrics.csv")) if (rows := _rows(path, names))],
        "checkpoints": {
            str(path.relative_to(run.directory)): _checkpoint(path, names)
            for path in sorted(run.directory.rglob("*.ckpt"))
        },
    }
    here = str(run.directory)
    return {path.replace(here, "DIR"): text.replace(here, "DIR") for path, text in flatten(parts)}


def state_of(module: nn.Module) -> dict[str, Any]:
    """The complete state of a module, and the state of the process."""
    return {
        "parameters": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "leaf": {name: p.is_leaf for name, p in module.named_parameters()},
        "training": {name: child.training for name, child in module.named_modules()},
        "hooks": hooks(module),
        "attributes": {name: attributes(child) for name, child in module.named_modules()},
        "generators": generators(),
        "settings": settings(),
    }


def assert_same(found: Flat, expected: Flat) -> None:
    """Raise AssertionError if two fingerprints differ, and list the differences."""
    differences = [
        f"{path}: {found.get(path, 'missing')} instead of {expected.get(path, 'nothing')}"
        for path in (*expected, *(path for path in found if path not in expected))
        if found.get(path) != expected.get(path)
    ]
    more = f"\n  ... and {len(differences) - 10} more" if len(differences) > 10 else ""
    assert not differences, "training was disturbed:\n  " + "\n  ".join(differences[:10]) + more


_METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")


def hooks(module: nn.Module) -> dict[str, Any]:
    """Every hook on a submodule, parameter or buffer."""
    found: dict[str, Any] = {}
    for name, child in module.named_modules():
        found |= {f"{name}:{key}": list(value.values()) for key, value in vars(child).items() if key.endswith("_hooks")}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        both = (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
        found[f"{name}:backward"] = [list((registered or {}).values()) for registered in both]
    return found


def attributes(module: nn.Module) -> dict[str, Any]:
    """A submodule's attributes that are neither parameters, buffers, submodules nor hooks."""
    framework = {"_parameters", "_buffers", "_modules", "_trainer", "_fabric", "_metric_attributes", "training"}
    framework |= {"_torchdynamo_wrapper_id"}  # an address
    return {
        name: value for name, value in vars(module).items() if name not in framework and not name.endswith("_hooks")
    }


def _rows(path: Path, probes: set[str]) -> list[dict[str, str]]:
    """The rows that the user logged to a CSV file, without the columns of probes and without rows of probes alone."""
    with path.open() as file:
        kept = [
            _of_the_user({key: value for key, value in row.items() if value}, probes) for row in csv.DictReader(file)
        ]
    return [row for row in kept if row.keys() - {"step"}]


def _of_the_user(metrics: Mapping[str, Any], probes: set[str]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key.split("/")[0] not in (*probes, "probes")}


def _named_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> Any:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    state = {names[id(parameter)]: value for parameter, value in optimizer.state.items()}
    return [
        state,
        [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
    ]


def _models(callback: L.Callback) -> dict[str, Any]:
    """The modules that a callback keeps, such as an average of the weights."""
    return {name: value.state_dict() for name, value in vars(callback).items() if isinstance(value, nn.Module)}


def _loader_state(loaders: Any) -> Any:
    """Positions and generators of the user's own data objects."""
    if isinstance(loaders, dict):
        return {key: _loader_state(value) for key, value in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return [_loader_state(value) for value in loaders]
    parts = [loaders, getattr(loaders, "sampler", None), getattr(loaders, "batch_sampler", None)]
    dataset = getattr(loaders, "dataset", None)
    state = dict(getattr(dataset, "__dict__", {}))
    return [[getattr(part, "generator", None) for part in parts], state]


def _checkpoint(path: Path, probes: set[str]) -> dict[str, Any]:
    content = torch.load(path, weights_only=False)
    states = {key: state for key, state in content.get("callbacks", {}).items() if key not in probes}
    return {**content, "callbacks": states}
