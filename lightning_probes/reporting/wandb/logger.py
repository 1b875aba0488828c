"""Logging to Weights & Biases: one history row per event, with scalars, pictures, tables and the table of flags.

The x-axis of all keys is `trainer/global_step`. W&B's own `step=` is never used, because it drops rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from lightning_probes.reporting.event import Event
from lightning_probes.reporting.panels.base import Panel
from lightning_probes.results import Flag

X_AXIS = "trainer/global_step"
FLAGS = "probes/flags"
COLOURED = "_coloured"
"""Ending of the key under which curves are also logged as a Plotly figure, in colours from early to late."""
FLAG_COLUMNS = ("step", "probe", "flag", "value", "threshold", "level", "message")

# The metric names defined so far for each run object. The object of a resumed run starts with none.
_defined: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def write_often() -> None:
    """Make future runs write to disk every second, unless the user has set another interval.

    By default an offline run keeps the rows of the last 15 seconds in memory, which are lost if the process is killed.
    """
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")


def log_row(logger: Any, event: Event) -> None:
    """Log an event as one row: scalars, pictures and their tidy tables, and the table of flags if there are any.

    Args:
        logger: A `WandbLogger`.
        event: The event.
    """
    run = _run(logger)
    if run is None:
        return
    shown, extras = ({}, {}) if run.disabled else _media(event)
    logged = {**extras, **event.scalars, **shown}  # a number or a picture replaces a table of the same key
    tables = extras.keys() - event.scalars.keys() - shown.keys()
    hidden = {*tables, *event.summary, *event.details}
    for key in (*logged, *event.summary):
        # The history of a native chart has only its table, for which W&B would add a second panel.
        is_chart, name = hasattr(logged.get(key), "spec"), prefixed(logger, key)
        _define(run, f"Custom Chart Tables/{name}_table" if is_chart else name, hidden=is_chart or key in hidden)
    if logged:
        logger.log_metrics(logged, step=event.step)
    if event.summary:
        write_summary(logger, event.summary)


def write_summary(logger: Any, values: Mapping[str, Any]) -> None:
    """Write values to the run's summary, never to its history."""
    run = _run(logger)
    if run is not None:
        run.summary.update({prefixed(logger, key): value for key, value in values.items()})


def record_settings(logger: Any, name: str, settings: Mapping[str, Any]) -> None:
    """Set `config["probes"][name]`, and keep the entries of other probes."""
    run = _run(logger)
    if run is not None:
        probes = {**run.config.get("probes", {}), name: dict(settings)}
        run.config.update({"probes": probes}, allow_val_change=True)


def alert(logger: Any, flag: Flag) -> None:
    """Send one alert now. The caller decides when."""
    run = _run(logger)
    if run is not None:
        numbers = [f"{key} {value:.4g}" for key in ("value", "threshold") if (value := getattr(flag, key)) is not None]
        text = flag.message + (f" ({', '.join(numbers)})" if numbers else "")
        # W&B treats a wait of 0 as unset, and then waits a minute.
        run.alert(title=flag.key, text=text, level="WARN" if flag.level == "warning" else "INFO", wait_duration=1)


def _run(logger: Any) -> Any | None:
    """The run; None on ranks where the logger has only a dummy, all of whose attributes are functions."""
    run = logger.experiment
    return run if isinstance(getattr(run, "id", None), str) else None


def prefixed(logger: Any, key: str) -> str:
    """A key as the logger's own `log_metrics` would write it."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}{key}" if prefix else key


def _define(run: Any, name: str, hidden: bool) -> None:
    """Define the x-axis of a new name, and whether W&B hides it from the automatic panels.

    Names are defined one by one: if two globs match a name, W&B chooses one at random. Besides, a logger that was
    created with a running run defines nothing itself.
    """
    defined = _defined.setdefault(run, set())
    if not defined:
        run.define_metric(X_AXIS)
        defined.add(X_AXIS)
    if name not in defined:
        run.define_metric(name, step_metric=X_AXIS, hidden=hidden)
        defined.add(name)


def _media(event: Event) -> tuple[dict[str, Any], dict[str, Any]]:
    """The media that W&B shows automatically, and hidden ones for panels of the user: details, tables, colours."""
    import wandb

    shown: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    for picture in event.pictures:
        figure, (columns, rows) = wandb.Plotly(picture.figure()), picture.table()
        table = wandb.Table(columns=list(columns), data=rows)
        is_detail, by_name = picture.panel.detail, picture.panel.has_lines_by_name
        if by_name and not is_detail:
            shown[picture.key] = _native(picture.panel, table)  # which has the table
        else:
            extras[picture.table_key] = table
        coloured = picture.key + COLOURED * by_name
        (extras if is_detail or by_name else shown)[coloured] = figure
    if event.risen:
        shown[FLAGS] = _flags_table(event)
    return shown, extras


def _native(panel: Panel, table: Any) -> Any:
    """W&B's own line chart: one colour per run, one dash pattern per line, and a y-axis with the label "y"."""
    from wandb.plot import plot_table

    x, y, line = table.columns[1:]
    xname = ". ".join(part for part in (x, panel.caption.partition(". ")[0]) if part)  # there is no room for more
    return plot_table(
        vega_spec_name="wandb/lineseries/v0",
        data_table=table,
        fields={"step": x, "lineKey": line, "lineVal": y},
        string_fields={"title": panel.title, "xname": xname},
        split_table=True,
    )


def _flags_table(event: Event) -> Any:
    """A new table with all rows so far, because W&B logs a table object only once, without rows added later."""
    import wandb

    rows = []
    for step, probe, flag in event.risen:
        name = flag.key.removeprefix(f"{probe}/flag/")
        numbers = [
            value if value is not None and math.isfinite(value) else None for value in (flag.value, flag.threshold)
        ]
        rows.append([step, probe, name, *numbers, flag.level, flag.message])
    return wandb.Table(columns=list(FLAG_COLUMNS), data=rows)
