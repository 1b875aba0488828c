"""What is compared. A task has a plain pass, tools that do it, a reference, and an error against that."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.models import MODELS
from benchmarks.work import Work

Run: TypeAlias = Callable[[], Any]
Prepare: TypeAlias = Callable[[Work], Run]

NAMES = (
    "fisher", "lambda_max", "trace", "cka", "interpolation", "connectivity", "plane", "dropout", "matching",
    "linear", "attention", "residual", "gradient_flow", "gradients",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One measurement, done by several tools.

    Args:
        name: As on the command line.
        title: For the table.
        pass_name: What the plain pass is.
        plain: Prepares the plain pass.
        tools: Name to what prepares a tool: sets it up on a model and returns what is timed.
        reference: Computes what the tools are compared with, once a model.
        error: Of what a tool returned, against the reference: relative, or as `error_name` says.
        error_name: Heading of the column.
        many_passes: Whether it takes many passes, and so fewer samples.
        models: On which it can be done.
    """

    name: str
    title: str
    pass_name: str
    plain: Prepare
    tools: Mapping[str, Prepare]
    reference: Callable[[Work], Any]
    error: Callable[[Work, Any, Any], float]
    error_name: str = "relative error"
    many_passes: bool = False
    models: Sequence[str] = tuple(MODELS)


def task(name: str) -> Task:
    """A task by its name."""
    found: Task = importlib.import_module(f"benchmarks.tasks.{name}").TASK
    return found
