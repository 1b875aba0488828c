"""The command line."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import regression, tasks
from benchmarks.cells import Row, apart, referenced, remembered, timed
from benchmarks.models import MODELS
from benchmarks.table import Results, machine, render, row_line, write
from benchmarks.timing import CLOCKS

ROOT = Path(__file__).parent.parent
COMMITTED = Path(__file__).parent / "results.json"
WHOLE = ("idle", "scaling", "training", "budgets")  # tasks that are no cells of a model and a tool


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("--tasks", nargs="+", choices=(*tasks.NAMES, *WHOLE), default=[*tasks.NAMES, *WHOLE])
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    made.add_argument("--tools", nargs="+", help="names as in the table; a name takes its variants along")
    made.add_argument("--budgets", nargs="+", help="of the budget table, only rows whose name starts so")
    made.add_argument("--rounds", type=int, default=5, help="how often A and B alternate")
    made.add_argument("--threads", type=int, help="by default as in the table that is updated or compared with, or 1")
    made.add_argument(
        "--clock", choices=CLOCKS, help="likewise, or cpu: with --threads 1 that holds on a machine that is busy"
    )
    made.add_argument(
        "--limit", type=float, default=90.0, help="seconds of timing a cell; it is ended after four times"
    )
    made.add_argument(
        "--quick", action="store_true", help="to try things: a quarter of the samples, 3 rounds, no memory, no table"
    )
    made.add_argument("--no-memory", action="store_true", help="leave out peak memory, which runs each cell again")
    made.add_argument(
        "--check", action="store_true", help="compare ours with the committed table; fail if worse; write nothing"
    )
    made.add_argument("--results", type=Path, default=COMMITTED, help="JSON to update; rows not run stay as they are")
    made.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "performance.md", help="page to write the tables into"
    )
    made.add_argument("--dry", action="store_true", help="print only, write nothing")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.check and options.quick:
        parser().error("--check compares rows of equal numbers of samples: leave out --quick")
    path = COMMITTED if options.check else options.results
    before = Results.read(path)
    options.threads = options.threads or before.machine.get("threads", 1)
    options.clock = options.clock or before.machine.get("clock", "cpu")
    if options.quick:
        options.rounds, options.no_memory = min(options.rounds, 3), True
    # A check that fails must not move what it is compared with, and rows of fewer samples are others.
    writes = not (options.check or options.dry or options.quick)
    if options.check:
        options.no_memory = True
    found = Results(machine=machine(options.threads, options.clock))
    if writes or options.check:
        check_same_clock(before.machine, found.machine, path)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        for kind, row in every_row(options, Path(name)):
            getattr(found, kind).append(row)
            print(row_line(row), flush=True)
            if writes:  # at once, for it takes hours and may be ended
                Results.read(options.results).updated(found).save(options.results)
    print(f"{time.perf_counter() - start:.0f} s")
    worse = regression.worse(found, before) if options.check else []
    for line in worse:
        print(f"worse than the committed table: {line}")
    if options.check:
        for line in regression.unjudged(found):
            print(f"not compared: {line}")
        print(f"{regression.compared(found, before)} rows compared, {len(worse)} worse")
    if writes:
        merged = Results.read(options.results)
        write(options.page, merged)
        if merged.rows:
            from benchmarks.pictures import ratios

            ratios(merged.rows, options.page.parent / options.page.stem / "ratios.png")
    print(render(found))
    return 1 if worse else 0


def check_same_clock(before: Row, now: Row, path: Path) -> None:
    """The rows that stay were measured as the new ones will be, but for the processor, which rows name."""
    different = [key for key in ("gpu", "threads", "clock") if before and before[key] != now[key]]
    if different:
        found = ", ".join(f"{key} {before[key]}, now {now[key]}" for key in different)
        sys.exit(f"{path} was measured otherwise ({found}): pass the same --threads and --clock, or another --results")


def every_row(options: Any, directory: Path) -> Iterator[tuple[str, Row]]:
    """Every row, with the kind of `Results` that it is."""
    for row in cells(options, directory):
        yield "rows", row
    for kind in WHOLE:
        if kind in options.tasks and (kind in regression.JUDGED or not options.check):
            for row in whole(kind, options, directory):
                yield kind, row


def cells(options: Any, directory: Path) -> Iterator[Row]:
    """One row for each task, model and tool."""
    scale = 0.25 if options.quick else 1.0
    for name in options.tasks:
        if name in WHOLE:
            continue
        task = tasks.task(name)
        wanted = ["ours"] if options.check and options.tools is None else options.tools  # no peer is judged
        chosen = [tool for tool in task.tools if is_chosen(tool, wanted)]
        how: dict[str, Any] = {"threads": options.threads, "clock": options.clock}
        for model in (model for model in options.models if model in task.models):
            # It may take longer than any tool, so that it has a limit of its own.
            prepared = apart(referenced, name, model, directory, scale, limit=20 * options.limit, **how)
            for tool in chosen:
                where = (name, model, tool, directory)
                row = {"task": name, "model": model, "tool": tool, **prepared}
                if "exception" not in row:
                    row |= apart(timed, *where, options.rounds, scale, options.limit, limit=4 * options.limit, **how)
                if not options.no_memory and "exception" not in row:
                    memory = apart(remembered, *where, scale, limit=4 * options.limit, **how)
                    row |= {key: value for key, value in memory.items() if key != "exception"}
                yield row


def is_chosen(tool: str, wanted: Sequence[str] | None) -> bool:
    """Whether a tool, or the one that it is a variant of ("ours, view ready" of "ours"), is wanted."""
    return wanted is None or tool in wanted or tool.partition(",")[0] in wanted


def whole(kind: str, options: Any, directory: Path) -> Iterator[Row]:
    """The rows of a task that is no cell."""
    if kind == "budgets":
        from benchmarks.budgets.rows import rows
    elif kind == "idle":
        from benchmarks.idle import rows
    elif kind == "scaling":
        from benchmarks.scaling import rows
    else:
        from benchmarks.training import rows
    yield from rows(options, directory)


if __name__ == "__main__":
    sys.exit(main())
