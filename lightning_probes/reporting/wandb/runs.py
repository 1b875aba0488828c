"""Weights & Biases: the runs of a project, with what they were set to and what they ended with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_probes.reporting.wandb.artifact import offline


class RunRecord(NamedTuple):
    """One run.

    Attributes:
        name: The name or the id under which messages mention it.
        state: "finished", or another state of W&B.
        config: What the run was set to.
        summary: What it ended with.
    """

    name: str
    state: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]


def runs_of_project(path: str) -> list[RunRecord]:
    """All runs of a project, the oldest first.

    Args:
        path: `entity/project`.

    Raises:
        ValueError: If the project can't be read.
    """
    import wandb

    try:
        if why := offline():
            raise ConnectionError(why)
        # `lazy` would ask the server once for each run.
        found = list(wandb.Api().runs(path, per_page=200, lazy=False))
        return [RunRecord(run.id, run.state, dict(run.config), dict(run.summary_metrics)) for run in found]
    except Exception as error:  # of the network, of the key, of a project that is not there
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"runs={path!r} can't be read from W&B ({reason}): check entity and project, the network and "
            "WANDB_API_KEY, or pass the path of a CSV file that was exported there"
        ) from error
