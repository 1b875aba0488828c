"""Weights & Biases: one history row an event, exact definitions, native line series, Plotly, the table of flags.

Loggers are told by what they are called, not by `isinstance`: `lightning` and `pytorch_lightning` each have a class of
their own. Nothing is ever logged with W&B's own `step=`, which drops rows; the x-axis is `trainer/global_step`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from lightning_probes.reporting.event import Event, Picture
from lightning_probes.reporting.figures import shown
from lightning_probes.reporting.panels import Curves
from lightning_probes.reporting.style import gaps
from lightning_probes.results import Curve, Flag

X_AXIS = "trainer/global_step"
FLAGS = "probes/flags"
FLAG_COLUMNS = ("step", "probe", "flag", "value", "threshold", "level", "message")

# What was said of a run object already; one that resumes a run starts without.
_defined: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def write_often() -> None:
    """Have runs that start from now on write to disk every second, unless the user has asked for something else.

    By itself an offline run keeps the rows of a quarter of a minute in memory, which are lost if the process is killed.
    """
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")


def report(logger: Any, event: Event) -> None:
    """Log an event as one row: scalars, pictures and, if flags have risen, the table of flags.

    Args:
        logger: A `WandbLogger`.
        event: What was measured.
    """
    run = _run(logger)
    if run is None:
        return
    scalars = dict(event.scalars)
    media = {} if run.disabled else {picture.key: _media(picture) for picture in event.pictures}
    if event.flags and not run.disabled:
        media[FLAGS] = _flags_table(event)
    _define(logger, run, scalars)
    if scalars or media:
        logger.log_metrics(scalars | media, step=event.step)
    if event.summary:
        write_summary(logger, event.summary)


def write_summary(logger: Any, values: Mapping[str, Any]) -> None:
    """Write values to the run's summary alone, never to its history."""
    run = _run(logger)
    if run is not None:
        run.summary.update({prefixed(logger, key): value for key, value in values.items()})


def record_settings(logger: Any, name: str, settings: Mapping[str, Any]) -> None:
    """Set `config["probes"][name]`, leaving the entries of other probes as they are."""
    run = _run(logger)
    if run is not None:
        probes = {**run.config.get("probes", {}), name: dict(settings)}
        run.config.update({"probes": probes}, allow_val_change=True)


def alert(logger: Any, flag: Flag) -> None:
    """Send one alert now; when to send is the caller's to decide."""
    run = _run(logger)
    if run is not None:
        numbers = [f"{key} {value:.4g}" for key in ("value", "threshold") if (value := getattr(flag, key)) is not None]
        text = flag.message + (f" ({', '.join(numbers)})" if numbers else "")
        # A wait of 0 counts as unset, which means a minute.
        run.alert(title=flag.key, text=text, level="WARN" if flag.level == "warning" else "INFO", wait_duration=1)


def _run(logger: Any) -> Any | None:
    """The run, or None on ranks where the logger has only a dummy (whose every attribute is a function)."""
    run = logger.experiment
    return run if isinstance(getattr(run, "id", None), str) else None


def prefixed(logger: Any, key: str) -> str:
    """A key as the logger's own `log_metrics` would write it."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}{key}" if prefix else key


def _define(logger: Any, run: Any, keys: Mapping[str, float]) -> None:
    """Give each new key its x-axis by its exact name.

    Of two globs that fit a key W&B takes either at random, and a logger that was handed a running run defines nothing.
    Flags, seconds and standard errors stay out of the automatic panels.
    """
    defined = _defined.setdefault(run, set())
    if not defined:
        run.define_metric(X_AXIS)
        defined.add(X_AXIS)
    for key in keys:
        name = prefixed(logger, key)
        if name not in defined:
            hidden = "/flag/" in key or key.endswith(("/seconds", "_se"))
            run.define_metric(name, step_metric=X_AXIS, hidden=hidden)
            defined.add(name)


def _media(picture: Picture) -> Any:
    import wandb

    if not isinstance(picture.panel, Curves):
        return wandb.Plotly(picture.figure())
    curves = shown(picture.trail, picture.key, picture.panel.most, Curve)
    width = len(str(curves[-1][0]))
    return wandb.plot.line_series(
        xs=[gaps(curve.x.tolist()) for _, curve in curves],
        ys=[gaps(curve.y.tolist()) for _, curve in curves],
        # Aligned, because the chart sorts its lines by name.
        keys=[f"step {step:>{width}}" for step, _ in curves],
        title=picture.panel.title,
        xname=curves[-1][1].x_label,
        split_table=True,
    )


def _flags_table(event: Event) -> Any:
    """A new table with every row so far: one that was logged before would be logged again as it was."""
    import wandb

    rows = []
    for step, probe, flag in event.risen:
        name = flag.key.removeprefix(f"{probe}/flag/")
        numbers = [
            value if value is not None and math.isfinite(value) else None for value in (flag.value, flag.threshold)
        ]
        rows.append([step, probe, name, *numbers, flag.level, flag.message])
    return wandb.Table(columns=list(FLAG_COLUMNS), data=rows)
