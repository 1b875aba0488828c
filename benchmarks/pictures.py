"""Pictures of the tables, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import MODELS

Row = dict[str, Any]


def scaling(rows: Sequence[Row], path: Path) -> None:
    """Four log-log pictures side by side, a line a probe, with the exponent that fits it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    names = list(dict.fromkeys(row["what"] for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(1 + 3 * len(names), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        here = [row for row in rows if row["what"] == name and "sizes" in row]
        for row in here:
            label = f"{row['tool']}: {row['exponent']:.2f}"
            axis.loglog(row["sizes"], row["seconds"], marker="o", label=label)
        sizes = sorted({size for row in here for size in row["sizes"]})
        axis.set_xticks(sizes, [f"{size:g}" if size < 1e4 else f"{size:.2g}" for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(name)
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.legend(title="exponent", fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    axes[0][0].set_ylabel("seconds an event")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def ratios(rows: Sequence[Row], path: Path) -> None:
    """What each tool takes over a plain pass: a picture a task, a row a model, a colour a tool."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    timed = [row for row in rows if row.get("ratio") is not None and not row["tool"].startswith("ours, ")]
    tasks = list(dict.fromkeys(row["task"] for row in timed))
    if not tasks:
        return
    models = [model for model in MODELS if any(row["model"] == model for row in timed)]
    looks = _looks([row["tool"] for row in timed])
    across = min(5, len(tasks))
    down = -(-len(tasks) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(1 + 3 * across, 3.8 * down), sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        here = [row for row in timed if row["task"] == task]
        for tool in dict.fromkeys(row["tool"] for row in here):
            of_tool = [row for row in here if row["tool"] == tool]
            places = [models.index(row["model"]) for row in of_tool]
            axis.plot([row["ratio"] for row in of_tool], places, linestyle="", label=tool, **looks[tool])
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.axvline(1, color="grey", linewidth=0.8)
        axis.set_title(task)
        axis.set_xlabel("over a plain pass")
        axis.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # below, off the data
        axis.grid(visible=True, axis="both", alpha=0.3)
    axes[0][0].set_yticks(range(len(models)), models)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _looks(tools: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Marker and colour of each tool, the same in every picture; ours is a dot on top."""
    others = [tool for tool in dict.fromkeys(tools) if tool != "ours"]
    looks = {tool: {"marker": "x+"[place // 9 % 2], "color": f"C{1 + place % 9}"} for place, tool in enumerate(others)}
    return {"ours": {"marker": "o", "color": "C0", "zorder": 3}, **looks}
