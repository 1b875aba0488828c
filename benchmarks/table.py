"""The table: as JSON, which a later run is compared with, and as Markdown."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_KEYS = ("task", "model", "tool", "what", "name")


@dataclass
class Results:
    """Everything that was measured.

    Attributes:
        machine: What it ran on.
        rows: Cells of task, model and tool.
        idle: Cost of probes that are not due.
        scaling: Cost against one size at a time.
        training: A whole fit with all probes and without.
        budgets: One row a budget.
    """

    machine: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    idle: list[Row] = field(default_factory=list)
    scaling: list[Row] = field(default_factory=list)
    training: list[Row] = field(default_factory=list)
    budgets: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What a file holds; nothing, where there is none."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(_finite(asdict(self)), indent=1) + "\n")

    def updated(self, new: Results) -> Results:
        """These results with rows replaced by the new ones of the same name; the others stay.

        Rows from another machine than that of the table have its description in them.
        """
        kinds = ("rows", "idle", "scaling", "training", "budgets")
        elsewhere = bool(self.machine) and self.machine["cpu"] != new.machine["cpu"]
        here = {"on": _machine_line(new.machine)} if elsewhere else {}
        fresh = {kind: [row | here for row in getattr(new, kind)] for kind in kinds}
        merged = {kind: _merged(getattr(self, kind), fresh[kind]) for kind in kinds}
        return Results(machine=self.machine if elsewhere else new.machine, **merged)


def key_of(row: Row) -> tuple[str, ...]:
    """What makes a row the same in two runs."""
    return tuple(str(row.get(key, "")) for key in _KEYS)


def machine(threads: int, clock: str = "wall") -> Row:
    """What the figures depend on."""
    from importlib.metadata import version

    import torch

    model = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model or platform.processor(), "cores": os.cpu_count(), "threads": threads, "clock": clock, "gpu": gpu,
        "python": platform.python_version(), "torch": torch.__version__, "lightning": version("lightning"),
    }  # fmt: skip


def render(results: Results) -> str:
    """All tables as Markdown."""
    tables = {
        "Budgets": (results.budgets, _BUDGET_COLUMNS),
        **{
            name: ([row for row in results.rows if row["task"] == name], _CELL_COLUMNS)
            for name in dict.fromkeys(row["task"] for row in results.rows)
        },
        "Probes that are not due": (results.idle, _IDLE_COLUMNS),
        "A whole training": (results.training, _TRAINING_COLUMNS),
        "Cost against size": (results.scaling, _SCALING_COLUMNS),
    }
    machines = dict.fromkeys(row["on"] for rows, _ in tables.values() for row in rows if "on" in row)
    marks = {machine: chr(ord("a") + place) for place, machine in enumerate(machines)}
    parts = [_machine_line(results.machine)] if results.machine else []
    parts += [f"Rows marked {mark} in their last column: {machine}" for machine, mark in marks.items()]
    for title, (rows, columns) in tables.items():
        if rows:
            marked: Sequence[Column] = [("machine", lambda row: marks.get(row.get("on"), ""))]
            parts += [f"## {title}", _table(rows, [*columns, *(marked if any("on" in row for row in rows) else ())])]
    return "\n\n".join(parts)


def write(page: Path, results: Results) -> None:
    """Put the tables between the markers of a page; a page without them gets them at its end."""
    text = page.read_text() if page.exists() else "# Performance\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{render(results)}\n\n{END}{after}")


def row_line(row: Row) -> str:
    """A row on one line, for whoever waits."""
    name = " / ".join(part for part in key_of(row) if part)
    rest = {key: value for key, value in row.items() if key not in (*_KEYS, "on")}
    return f"{name}: " + ", ".join(f"{key} {number(value)}" for key, value in rest.items())


def number(value: Any) -> str:
    """Three significant digits; what is no number as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return str(value)


def _ratio(row: Row) -> str:
    if row.get("ratio") is None:
        return ""
    spread = f" ({number(row['ratio_low'])} to {number(row['ratio_high'])})" if "ratio_low" in row else ""
    return number(row["ratio"]) + spread


def _outcome(row: Row) -> str:
    return str(row.get("exception", "")).replace("|", "\\|") or number(row.get("error"))


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: number(row.get(key))


Column = tuple[str, Callable[[Row], str]]
_CELL_COLUMNS: Sequence[Column] = (
    ("model", _plain("model")),
    ("tool", _plain("tool")),
    ("seconds", _plain("seconds")),
    ("over a plain pass (quartiles)", _ratio),
    ("peak MiB", _plain("peak_mib")),
    ("plain pass, MiB", _plain("plain_peak_mib")),
    ("error, or what it raised", _outcome),
)
_BUDGET_COLUMNS: Sequence[Column] = (
    ("what", _plain("what")),
    ("measured", lambda row: row.get("exception") or number(row.get("measured"))),
    ("must be", _plain("budget")),
    ("holds", _plain("holds")),
    ("how", _plain("how")),
)
_IDLE_COLUMNS: Sequence[Column] = (
    ("what", _plain("what")),
    ("step, ms", _plain("milliseconds")),
    ("over empty callbacks (quartiles)", _ratio),
)
_TRAINING_COLUMNS: Sequence[Column] = (
    ("what", _plain("what")),
    ("seconds", _plain("seconds")),
    ("over the fit without (quartiles)", _ratio),
    ("where the time goes", _plain("how")),
)
_SCALING_COLUMNS: Sequence[Column] = (
    ("probe", _plain("tool")),
    ("against", _plain("what")),
    ("exponent", _plain("exponent")),
    ("sizes", lambda row: ", ".join(map(number, row.get("sizes", ())))),
    ("seconds", lambda row: ", ".join(map(number, row.get("seconds", ())))),
)


def _table(rows: Iterable[Row], columns: Sequence[Column]) -> str:
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows]
    return "\n".join(lines)


def _machine_line(found: Row) -> str:
    return (
        f"{found['cores']} cores ({found['cpu'] or 'CPU'}), {found['threads']} threads, {found['clock']} clock"
        + (f", {found['gpu']}" if found.get("gpu") else "")
        + f", Python {found['python']}, PyTorch {found['torch']}, Lightning {found['lightning']}."
    )


def _merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    rows = {key_of(row): row for row in old}
    rows.update({key_of(row): row for row in new})
    return list(rows.values())


def _finite(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
