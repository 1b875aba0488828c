"""What an instability study has found: a table with a row for each pair of children, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from lightning_probes.reporting import Event, Lines, Picture
from lightning_probes.reporting.panels.base import Drawing, History, Measured, Table

if TYPE_CHECKING:
    import plotly.graph_objects as go

Row: TypeAlias = Mapping[str, int | float | None]

NAME = "instability"
STABLE = 0.02
"""Frankle et al. call a network stable if the error rises by less than this."""


@dataclass(frozen=True)
class _OverSpawnSteps(Lines):
    """The mean over the pairs of each spawn step; its table has each pair."""

    def draw(self, measured: Measured) -> Drawing:
        return super().draw(measured._replace(history=means(measured.history)))

    def table(self, measured: Measured) -> Table:
        prefix = f"{measured.name}/"
        keys = [key for key in dict.fromkeys(key for row in measured.history for key in row) if key.startswith(prefix)]
        rows: list[list[str | float | None]] = [
            [row["step"], *(row.get(key) for key in keys)] for row in measured.history
        ]
        return ["spawn_step", *(key.removeprefix(prefix) for key in keys)], rows


_ERROR = _OverSpawnSteps(
    "barrier_over_spawn_step", "Instability to the order of the data",
    "Two copies trained on from this step with other orders of the data end in one basin below the line.",
    y="error_barrier_mean", x_label="step at which the copies part", y_label="error barrier (share of targets)",
    reference=(STABLE, "2 %: stable below"), log_x=True,
    together=(("error_barrier_mean", "training"), ("val/error_barrier_mean", "validation")),
)  # fmt: skip
_LOSS = _OverSpawnSteps(
    "barrier_over_spawn_step", "Instability to the order of the data",
    "Two copies trained on from this step with other orders of the data end in one basin where there is no barrier.",
    y="barrier_mean", x_label="step at which the copies part", y_label="loss barrier (unit of training)",
    log_x=True, together=(("barrier_mean", "training"), ("val/barrier_mean", "validation")),
)  # fmt: skip


@dataclass(frozen=True)
class InstabilityResult:
    """Barriers between the ends of trainings that parted at some step.

    Args:
        rows: A row for each pair of children of a spawn step: `spawn_step`, their seeds, and the numbers of
            `ModeConnectivity` under its keys, such as `error_barrier_mean` and `error_barrier_mean_se`. A number that
            could not be measured, because an end is not finite, is None.
        trainings: A row for each training: its `spawn_step` (None for the one from which the others part), `seed`, and
            the `step` at which it ended.

    Example:
        >>> rows = [{"spawn_step": 0, "error_barrier_mean": 0.06}, {"spawn_step": 20, "error_barrier_mean": 0.01}]
        >>> InstabilityResult(rows).stable_from()
        20
    """

    rows: Sequence[Row]
    trainings: Sequence[Row] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "trainings"):
            object.__setattr__(self, name, tuple(dict(row) for row in getattr(self, name)))

    def to_dict(self) -> dict[str, list[int | float | None]]:
        """The rows as columns: `pandas.DataFrame(result.to_dict())`.

        Example:
            >>> InstabilityResult([{"spawn_step": 0, "barrier": 0.2}, {"spawn_step": 9, "barrier": 0.0}]).to_dict()
            {'spawn_step': [0, 9], 'barrier': [0.2, 0.0]}
        """
        columns = dict.fromkeys(key for row in self.rows for key in row)
        return {key: [row.get(key) for row in self.rows] for key in columns}

    def stable_from(self, threshold: float = STABLE) -> int | None:
        """The first spawn step from which on every error barrier is below a threshold; None if the last one is not.

        Raises:
            ValueError: If no error was measured, because the task has no classes.
        """
        if not any("error_barrier_mean" in row for row in self.rows):
            raise ValueError("no error was measured, because the task has no classes: compare the rows' 'barrier_mean'")
        first = None
        for step in sorted({int(row["spawn_step"] or 0) for row in self.rows}, reverse=True):
            found = [row.get("error_barrier_mean") for row in self.rows if row["spawn_step"] == step]
            if any(value is None or value >= threshold for value in found):
                break
            first = step
        return first

    def figure(self) -> go.Figure:
        """The barrier over the spawn step, with the line at 2 %. Several pairs of a step are drawn as their mean.

        Raises:
            ValueError: If no barrier could be measured.
        """
        return self._picture.figure()

    @property
    def _picture(self) -> Picture:
        return Picture(self._panel, NAME, _history(self.rows), {})

    @property
    def _panel(self) -> Lines:
        return _ERROR if any("error_barrier_mean" in row for row in self.rows) else _LOSS

    def events(self) -> Sequence[Event]:
        """What loggers get: the means of each spawn step at this step, and the picture and the table with the last."""
        if self._picture.is_empty:
            return ()
        entries = means(_history(self.rows))
        shown = [()] * (len(entries) - 1) + [(self._picture,)]
        return [
            Event(
                int(entry["step"]), NAME, scalars, pictures=pictures,
                details=[key for key in scalars if key != f"{NAME}/{self._panel.y}"],
            )
            for entry, pictures in zip(entries, shown, strict=True)
            if (scalars := {key: value for key, value in entry.items() if key.startswith(f"{NAME}/")})
        ]  # fmt: skip


def _history(rows: Sequence[Row]) -> History:
    """The rows as a panel reads measurements: full keys, and only finite numbers."""
    return [
        {"step": int(row["spawn_step"] or 0)}
        | {f"{NAME}/{key}": value for key, value in row.items() if value is not None and key != "spawn_step"}
        for row in rows
    ]


def means(history: History) -> History:
    """One entry for each step: the means over its pairs, with standard errors only if there is one pair.

    Children that two pairs share make the pairs dependent, so several pairs have none.

    Example:
        >>> means([{"step": 0, "a/x": 1.0, "a/x_se": 0.1}, {"step": 0, "a/x": 3.0}, {"step": 9, "a/x": 2.0}])
        [{'step': 0, 'a/x': 2.0}, {'step': 9, 'a/x': 2.0}]
    """
    found = []
    for step in dict.fromkeys(entry["step"] for entry in history):
        entries = [entry for entry in history if entry["step"] == step]
        keys = dict.fromkeys(key for entry in entries for key in entry if key != "step" and "/seed_" not in key)
        if len(entries) > 1:
            keys = {key: None for key in keys if not key.endswith("_se")}
        found.append({"step": step} | {key: fmean(entry[key] for entry in entries if key in entry) for key in keys})
    return found
