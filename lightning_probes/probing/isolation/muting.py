"""Muting of loggers that the user's code reaches through globals while a probe measures.

The twin's own loggers are muted already. This module mutes `wandb.log`, a run in a global variable, a `SummaryWriter`
and MLflow's functions. They are found by name in modules that are already imported.
"""

from __future__ import annotations

import functools
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Module, class in it (empty for functions of the module), and names of functions that log. The inner methods of wandb
# are included because `from wandb import log` keeps a bound method, which patching the class does not change.
_TOLD = (
    ("wandb", "", r"log|(log|link|mark|pin)_\w+|save|alert|watch|unwatch|define_metric|finish"),
    (
        "wandb.sdk.wandb_run", "Run",
        r"_?(log|log_artifact|save|finish|define_metric)|(log|link|mark|pin)_\w+|(upsert|finish)_artifact|alert|watch|"
        r"unwatch|write_logs",
    ),
    ("wandb.sdk.wandb_summary", "Summary", r"_update"),
    ("wandb.sdk.wandb_config", "Config", r"__set(item|attr)__|_?update|setdefaults|(update|merge)_locked|persist"),
    ("wandb.sdk.interface.interface", "InterfaceBase", r"publish_(alert|config|summary|preempting|partial_history)"),
    *((f"{package}.writer", kind, r"add_\w+|flush|close")
      for package in ("torch.utils.tensorboard", "tensorboardX") for kind in ("SummaryWriter", "FileWriter")),
    *((module, "", r"log_\w+|set_\w*tags?|start_run|end_run|register_model")
      for module in ("mlflow", "mlflow.tracking.fluent", "mlflow.pytorch")),
    *((module, kind, r"(log|set|create|update|delete|rename|transition)_\w+")
      for module, kind in (("mlflow.tracking.client", "MlflowClient"),
                           ("mlflow.tracking._tracking_service.client", "TrackingServiceClient"))),
    *((f"{package}.loggers.logger", "Logger", r"log_\w+|save|finalize|after_save_checkpoint")
      for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")),
    *((f"{package}.loggers.csv_logs", kind, r"log_\w+|save")
      for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
      for kind in ("ExperimentWriter", "_ExperimentWriter")),
)  # fmt: skip

# The functions among these that return an object. The others return None, also when muted: a hook may return the
# result of a logger, and any other value would replace the output of its layer.
_GIVES = r"(log|link)_(artifact|model|code)|(upsert|finish)_artifact|watch|start_run|register_model|create_\w+"

_KEY = "lightning_probes: muted"
_lock = threading.Lock()
_patched: list[tuple[Any, str, Any, Any]] = []
_users = 0


@contextmanager
def muted() -> Iterator[None]:
    """Drop all logging calls of this thread; other threads continue to log.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> logger = CSVLogger("logs", name="run", version=0)
        >>> with muted():
        ...     logger.log_metrics({"loss": 1.0}, step=0)
        >>> __import__("os").path.exists("logs/run/version_0/metrics.csv")
        False
    """
    depth = _depth()
    _enter()
    torch._C._stash_obj_in_tls(_KEY, depth + 1)
    try:
        yield
    finally:
        torch._C._stash_obj_in_tls(_KEY, depth)
        _leave()


class Nothing:
    """Returned by a muted function in place of an object; its attributes and calls return itself."""

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __call__(self, *_: Any, **__: Any) -> Nothing:
        """Return itself, for any arguments."""
        return self

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "nothing"


def _depth() -> int:
    """Number of nested measurements in this thread. Autograd passes it on to the threads in which it runs hooks."""
    return int(torch._C._get_obj_in_tls(_KEY)) if torch._C._is_key_in_tls(_KEY) else 0


def _enter() -> None:
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for owner, name in _found():
            original = vars(owner)[name]
            replacement = _unless_measuring(original, Nothing() if re.fullmatch(_GIVES, name) else None)
            _patched.append((owner, name, original, replacement))
            setattr(owner, name, replacement)


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        while _patched:
            owner, name, original, replacement = _patched.pop()
            if vars(owner).get(name) is replacement:  # not patched again by other code
                setattr(owner, name, original)


def _found() -> Iterator[tuple[Any, str]]:
    """The imported modules and classes, with the names of their functions that log."""
    for module, kind, pattern in _TOLD:
        if module not in sys.modules:
            continue
        if not kind:
            functions = [name for name, value in vars(sys.modules[module]).items() if callable(value)]
            yield from ((sys.modules[module], name) for name in functions if re.fullmatch(pattern, name))
        elif owner := getattr(sys.modules[module], kind, None):
            for each in (owner, *_below(owner)):
                methods = [name for name, value in vars(each).items() if isinstance(value, types.FunctionType)]
                yield from ((each, name) for name in methods if re.fullmatch(pattern, name))


def _below(kind: Any) -> Iterator[type]:
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _below(below)


def _unless_measuring(original: Callable[..., Any], instead: Any) -> Callable[..., Any]:
    @functools.wraps(original)
    def told(*arguments: Any, **named: Any) -> Any:
        return instead if _depth() else original(*arguments, **named)

    return told
