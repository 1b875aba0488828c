"""The shared tester: fit a module with and without probes, and compare everything that training left behind.

`fit` runs a Trainer and returns a `Run`, `fingerprint` turns it into a flat dict of what is there, and `assert_same`
compares two of those bit for bit. To watch something more, add an entry to `fingerprint`.
"""

from __future__ import annotations

import csv
import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedBase
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import cuda, cudnn

from lightning_probes import AtFitEnd, EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from tests.zoo import Fit

PROBES: dict[str, type[Probe]] = {
    "fisher": FisherTrace,
    "interpolation": InitInterpolation,
    "cka": LayerCKA,
    "sharpness": Sharpness,
}
SMALL: dict[str, dict[str, Any]] = {"interpolation": {"num_alphas": 4}}
Flat = dict[str, str]


def probe(kind: str, **arguments: Any) -> Probe:
    """A probe by its kind, on little data, measured at step 2 and at the end."""
    defaults = {"num_samples": 24, "micro_batch_size": 8, "schedule": [EveryNSteps(2, start=2, stop=2), AtFitEnd()]}
    return PROBES[kind](**{**defaults, **SMALL.get(kind, {}), **arguments})


class Recorder(L.Callback):
    """Writes down every batch in order, gradients before every optimizer step, and what is there after every batch."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(f"train batch {digest(batch)}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights, buffers = digest(list(pl_module.parameters())), digest(list(pl_module.buffers()))
        flags = [part.training for part in pl_module.modules()], [p.requires_grad for p in pl_module.parameters()]
        self.steps.append(
            f"weights {weights}, buffers {buffers}, flags {digest(flags)}, generators {digest(generators())}"
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append(f"gradients {digest([p.grad for p in pl_module.parameters()])}")

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.steps.append(f"validation batch {dataloader_idx} {digest(batch)}, generators {digest(generators())}")


@dataclass(frozen=True)
class Run:
    """A finished (or broken off) fit.

    Attributes:
        trainer: The Trainer.
        fit: The module and its data.
        recorder: What happened step by step.
        directory: What the run wrote is below it.
    """

    trainer: L.Trainer
    fit: Fit
    recorder: Recorder
    directory: Path

    @property
    def module(self) -> L.LightningModule:
        return self.fit.module


def fit(
    make: Callable[[], Fit],
    callbacks: Sequence[L.Callback] = (),
    directory: Path | None = None,
    catch: type[BaseException] | None = None,
    ckpt_path: Path | None = None,
    kind: Callable[..., Any] = L.Trainer,
    drive: Callable[[Any, Fit], Any] | None = None,
    seed: int | None = 7,
    **arguments: Any,
) -> Run:
    """Fit what `make` makes, from the same seeds each time.

    Args:
        make: Makes a module and its data.
        callbacks: Probes, and whatever else is to be attached.
        directory: Where the run writes; the working directory by default.
        catch: An exception that `trainer.fit` may end in.
        ckpt_path: A checkpoint to go on from.
        kind: The class of the Trainer.
        drive: What to do with the Trainer, where that is not one `fit`.
        seed: Seeds the generators at the start; None leaves them as they are.
        arguments: Further arguments of the Trainer.
    """
    directory = Path.cwd() if directory is None else directory
    if seed is not None:
        L.seed_everything(seed, verbose=False)
    made, recorder = make(), Recorder()
    defaults = {
        "max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "default_root_dir": directory,
    }  # fmt: skip
    trainer = kind(callbacks=[recorder, *callbacks], **{**defaults, **arguments})
    with suppress(*((catch,) if catch else ())):
        if drive is not None:
            drive(trainer, made)
        else:
            trainer.fit(made.module, **made.arguments(), ckpt_path=ckpt_path)
    return Run(trainer, made, recorder, directory)


# -- what is compared --------------------------------------------------------------------------------------------------


def fingerprint(run: Run) -> Flat:
    """Everything that a run without probes would have left just so: name to digest or value."""
    trainer, module = run.trainer, run.module
    names = {callback.name for callback in trainer.callbacks if isinstance(callback, Probe)}
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
            if not isinstance(callback, Probe)
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
    """All there is to a module, and the state of the process."""
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
    """Raise if two fingerprints differ anywhere, and say where."""
    differences = [
        f"{path}: {found.get(path, 'missing')} where there should be {expected.get(path, 'nothing')}"
        for path in (*expected, *(path for path in found if path not in expected))
        if found.get(path) != expected.get(path)
    ]
    more = f"\n  ... and {len(differences) - 10} more" if len(differences) > 10 else ""
    assert not differences, "training was disturbed:\n  " + "\n  ".join(differences[:10]) + more


_METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")


def generators() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def settings() -> dict[str, Any]:
    """The process-wide switches that a measurement may have to turn."""
    return {
        "sdpa": [
            cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ],
        "cudnn": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        "matmul": [torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32],
        "default": [torch.get_default_dtype(), torch.get_default_device()],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "anomaly": [torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()],
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        ],
        "autocast": [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"), _autocast_depth()],
        "printing": vars(torch._tensor_str.PRINT_OPTS),
        "compiler": torch._dynamo.eval_frame._stance.stance if "torch._dynamo" in sys.modules else "default",
        "global hooks": {
            name: len(value) for name, value in vars(torch.nn.modules.module).items() if name.endswith("_hooks")
        },
    }  # fmt: skip


def _autocast_depth() -> int:
    """How many blocks of autocast are open: as long as there is one, weights cast before are not cast anew."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


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
    """What the user logged to a CSV file: without the columns of probes, and without rows that hold nothing else."""
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
    """Places and generators of the user's own data objects."""
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


# -- digests -----------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """A short hash of a nested value, by content."""
    return hashlib.sha256("\n".join(f"{path}={leaf}" for path, leaf in flatten(value)).encode()).hexdigest()[:12]


def flatten(value: Any, path: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, str]]:
    """The leaves of a nested value as (path, text). An object is walked through its attributes, once on a path."""
    if isinstance(value, (Tensor, np.ndarray)):
        yield path, _array(value)
    elif isinstance(value, torch.Generator):
        yield path, f"generator {_array(value.get_state())}"
    elif isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
        yield path, f"generator {digest(_state(value))}"
    elif isinstance(value, SynchronizedBase):  # in memory whose place varies
        yield path, f"shared {bytes(value.get_obj())!r}"
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        yield path, repr(value)
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        yield path, f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, MethodType):
        yield path, f"method {value.__qualname__} of {type(value.__self__).__name__}"
    elif id(value) in seen or isinstance(value, nn.Module) or _is_framework(value):
        yield path, type(value).__name__
    else:
        seen = seen | {id(value)}
        if isinstance(value, Mapping):
            items = [(str(key), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            items = [(str(index), item) for index, item in enumerate(value)]
        elif isinstance(value, (set, frozenset)):
            items = [(str(index), item) for index, item in enumerate(sorted(value, key=repr))]
        else:
            items = list(getattr(value, "__dict__", {}).items())
        yield path, f"{type(value).__name__} of {len(items)}"
        for key, item in items:
            yield from flatten(item, f"{path}.{key}" if path else key, seen)


def _is_framework(value: Any) -> bool:
    """Whether this is a Trainer, of either namespace, or part of the compiler, which keeps books on the process."""
    bases = type(value).__mro__
    return any(base.__name__ == "Trainer" or base.__module__.startswith("torch._dynamo") for base in bases)


def _state(generator: random.Random | np.random.Generator | np.random.RandomState) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _array(value: Tensor | np.ndarray[Any, Any]) -> str:
    if isinstance(value, Tensor):
        shape, dtype = tuple(value.shape), str(value.dtype)
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        shape, dtype, content = value.shape, str(value.dtype), np.ascontiguousarray(value).tobytes()
    return f"{dtype}{list(shape)} {hashlib.sha256(content).hexdigest()[:12]}"
