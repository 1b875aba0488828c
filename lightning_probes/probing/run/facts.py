"""The facts about a run that the HTML page shows beside the results."""

from __future__ import annotations

import platform
from datetime import datetime, timedelta

from lightning_probes.probing.run.settings import version_of
from lightning_probes.probing.run.trainer import TrainerRun

_VERSIONS = ("lightning-probes", "lightning", "torch")


def facts_of(run: TrainerRun, status: str, elapsed: float) -> dict[str, str]:
    """Facts about a run, by name.

    Args:
        run: The run.
        status: Whether it is running or finished, or why it stopped.
        elapsed: Seconds since training began.
    """
    return {
        "status": status,
        "step": str(run.step),
        "epoch": str(run.epoch),
        "trained for": str(timedelta(seconds=round(elapsed))),
        "device": f"{run.processes.device}, {run.processes.size} process{'es' * (run.processes.size > 1)}",
        "precision": run.precision,
        "loggers": ", ".join(type(logger).__name__ for logger in run.loggers) or "none",
        "folder": str(run.folder.absolute()),
        "versions": ", ".join(
            [f"{package} {version_of(package)}" for package in _VERSIONS] + [f"Python {platform.python_version()}"]
        ),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
    }
