"""A W&B workspace and a report of the probes' results. Save them once per project.

Needs the extra `panels`. From the command line: `lightning-probes panels --entity E --project P`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_probes.callbacks.curvature.fisher_trace import FisherTrace
from lightning_probes.callbacks.curvature.sharpness import Sharpness
from lightning_probes.callbacks.features.layer_cka import LayerCKA
from lightning_probes.callbacks.paths.init_interpolation import InitInterpolation
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.scheduled import Scheduled
from lightning_probes.reporting.wandb.workspace import Keys, make_report, make_workspace, to_json, write

__all__ = ["default_probes", "report", "to_json", "workspace", "write"]


def default_probes() -> list[Probe]:
    """The four probes under their default names."""
    return [FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness()]


def workspace(
    entity: str,
    project: str,
    probes: Sequence[Scheduled] | None = None,
    *,
    loss: str = "val/loss",
    lr: str = "lr",
    batch_size: str = "batch_size",
    prefix: str = "",
) -> Any:
    """A workspace with one section per probe, one for flags and one for sweeps. Each panel says how to read it.

    Args:
        entity: The W&B user or team.
        project: The project.
        probes: The probes, monitors and interventions of the project's runs; by default the four probes under their
            default names.
        loss: Key of the validation loss, without the prefix.
        lr: Key of the learning rate in the runs' config.
        batch_size: Key of the batch size in the runs' config.
        prefix: The prefix of the runs' `WandbLogger`. It is put before every key, except those of the config.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; `save` it, or write it with `to_json`.

    Raises:
        ImportError: Without the extra `panels`.
        ValueError: If two probes have the same name, or one has the name "flags" or "sweep".

    Example:
        >>> "Sharpness over the optimizer's stability threshold" in to_json(workspace("me", "mnist"))
        True
        >>> [section.name for section in workspace("me", "mnist").sections]
        ['fisher', 'interpolation', 'cka', 'sharpness', 'flags', 'sweep']
    """
    return make_workspace(entity, project, _given(probes), Keys(loss, lr, batch_size, prefix))


def report(
    entity: str,
    project: str,
    probes: Sequence[Scheduled] | None = None,
    *,
    loss: str = "val/loss",
    lr: str = "lr",
    batch_size: str = "batch_size",
    prefix: str = "",
) -> Any:
    """A report template with the panels of `workspace`, and a text before each group of them.

    Args:
        entity: The W&B user or team.
        project: The project.
        probes: See `workspace`.
        loss: See `workspace`.
        lr: See `workspace`.
        batch_size: See `workspace`.
        prefix: See `workspace`.

    Returns:
        A `wandb_workspaces.reports.v2.Report`; `save` it, or write it with `to_json`.

    Raises:
        ImportError: Without the extra `panels`.
        ValueError: See `workspace`.

    Example:
        >>> report("me", "mnist").title
        'What the probes measured'
    """
    return make_report(entity, project, _given(probes), Keys(loss, lr, batch_size, prefix))


def _given(probes: Sequence[Scheduled] | None) -> Sequence[Scheduled]:
    return default_probes() if probes is None else probes
