"""Runs from wherever they are listed: a W&B project, a CSV file, a list of dicts, a DataFrame."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_probes.probing.values import refuse
from lightning_probes.reporting.wandb.runs import RunRecord, runs_of_project

FINISHED = "finished"
FAILED = ("crashed", "failed", "killed")
GOING = ("pending", "preempted", "preempting", "running")
_WANTED = "a W&B project ('entity/project'), the path of a CSV file, a list of dicts or a DataFrame"


def records(runs: Any) -> list[RunRecord]:
    """One record a run, in the order in which they are listed.

    Args:
        runs: `"entity/project"` at W&B; the path of a CSV file; an iterable of dicts; a DataFrame of pandas or polars.

    Raises:
        ValueError: If it is none of these, or can't be read.
    """
    if isinstance(runs, PathLike) or (isinstance(runs, str) and runs.lower().endswith(".csv")):
        return [*_of_rows(_rows_of_file(Path(runs)))]
    if isinstance(runs, str):
        parts = runs.split("/")
        if len(parts) != 2 or not all(parts):
            refuse("runs", _WANTED, runs)
        return runs_of_project(runs)
    if hasattr(runs, "to_dicts"):
        rows = runs.to_dicts()
    elif hasattr(runs, "to_dict") and hasattr(runs, "columns"):
        rows = runs.to_dict("records")
    elif isinstance(runs, Iterable) and not isinstance(runs, Mapping):
        rows = list(runs)
    else:
        refuse("runs", _WANTED, runs)
    if not all(isinstance(row, Mapping) for row in rows):
        refuse("runs", _WANTED, runs)
    return [*_of_rows(rows)]


def found(mapping: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of a path with dots through nested mappings; None if there is none.

    Example:
        >>> found({"model": {"lr": 0.1}}, "model.lr"), found({"model.lr": 0.2}, "model.lr"), found({}, "lr")
        (0.1, 0.2, None)
    """
    if key in mapping:
        value = mapping[key]
        value = value.item() if hasattr(value, "item") else value  # of numpy, in a DataFrame
        return None if value == "" else value
    first, dot, rest = key.partition(".")
    inner = mapping.get(first)
    return found(inner, rest) if dot and isinstance(inner, Mapping) else None


def keys_of(mapping: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """All keys, those of nested mappings as paths with dots."""
    for key, value in mapping.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{before}{key}.")


def _of_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[RunRecord]:
    """Rows that have config and summary in one. A column "state" counts if it holds the states of W&B."""
    known = (FINISHED, *FAILED, *GOING)
    for index, row in enumerate(rows):
        told = next((found(row, key) for key in ("state", "State") if key in row), None)
        state = str(told).lower() if str(told).lower() in known else FINISHED
        name = next((str(found(row, key)) for key in ("name", "Name", "id", "ID") if found(row, key)), f"row {index}")
        yield RunRecord(name, state, row, row)


def _rows_of_file(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [{key: _parsed(text or "") for key, text in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"runs={str(path)!r} can't be read as a CSV file ({error}): pass the path of one") from error


def _parsed(text: str) -> Any:
    """A cell as number, truth value or list if it reads as one. YAML's rules would keep 1e-3 as text."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def as_number(value: Any) -> float | None:
    """A logged value as a number, NaN if it is not finite; None if there is none. W&B stores NaN as text."""
    if value is None or isinstance(value, (bool, Mapping, list, tuple)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else math.nan
