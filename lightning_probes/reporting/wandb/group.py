"""The W&B runs of one study: a group, each run under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def join(loggers: Sequence[Any], group: str, name: str) -> None:
    """Let the runs that W&B loggers will begin belong to a group. What a logger was made with is kept.

    The run's id follows from group and name, so that a training that starts again logs to the same run.

    Args:
        loggers: The loggers of one training. A run that has begun already is left as it is.
        group: The group.
        name: The name of the run, unique in the group.
    """
    for logger in _of_wandb(loggers):
        arguments = getattr(logger, "_wandb_init", {})  # those of `wandb.init`, which is called later
        wanted = {"group": group, "name": name, "id": f"{group}-{name}"}
        arguments.update({key: value for key, value in wanted.items() if arguments.get(key) is None})


def finish(loggers: Sequence[Any]) -> None:
    """End the runs of W&B loggers, so that the next training begins its own."""
    for logger in _of_wandb(loggers):
        run = getattr(logger, "_experiment", None)  # asking for `experiment` would begin a run
        if run is not None:
            run.finish()


def _of_wandb(loggers: Sequence[Any]) -> list[Any]:
    return [each for each in loggers if any(cls.__name__ == "WandbLogger" for cls in type(each).__mro__)]
