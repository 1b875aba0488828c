"""Whether ratios got worse than those of the committed table."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.table import Results, Row, key_of

ALLOWED = 0.25
_RATIOS = ("rows", "idle", "training")
JUDGED = (*_RATIOS, "budgets")
_MISSING = ("ModuleNotFoundError", "ImportError")


def worse(new: Results, committed: Results, allowed: float = ALLOWED) -> list[str]:
    """What is worse, one line each.

    A ratio is worse when even its lower quartile exceeds the committed upper quartile by more than `allowed`: noise
    moves both. Budgets that held and do not any more, by their lower quartile where they have one, count as well, and
    cells of ours that raise now. Other people's tools are not judged, nor rows that one of the two tables lacks, nor
    those that need a package that is not installed.
    """
    lines = [line for row, old in _ratios(new, committed) for line in _worse_row(row, old, allowed)]
    return lines + [
        f"{row['what']}: {row.get('exception') or format(row['measured'], '.3g')}, must be {row.get('budget')}"
        for row, old in _budgets(new, committed)
        if old.get("holds") and ("exception" in row or row.get("lowest", row["measured"]) > row["budget"])
    ]


def compared(new: Results, committed: Results) -> int:
    """How many rows are in both tables and judged."""
    return len([*_ratios(new, committed), *_budgets(new, committed)])


def unjudged(new: Results) -> list[str]:
    """Rows that need a package that is not installed, one line each."""
    rows = [row for kind in JUDGED for row in getattr(new, kind)]
    return [f"{_name(row)}: {row['exception']}" for row in rows if _lacks_a_package(row)]


def _ratios(new: Results, committed: Results) -> Iterator[tuple[Row, Row]]:
    for kind in _RATIOS:
        yield from _pairs(new, committed, kind)


def _budgets(new: Results, committed: Results) -> Iterator[tuple[Row, Row]]:
    return _pairs(new, committed, "budgets")


def _pairs(new: Results, committed: Results, kind: str) -> Iterator[tuple[Row, Row]]:
    before = {key_of(row): row for row in getattr(committed, kind)}
    for row in getattr(new, kind):
        old = before.get(key_of(row))
        if old is not None and str(row.get("tool", "ours")).startswith("ours") and not _lacks_a_package(row):
            yield row, old


def _lacks_a_package(row: Row) -> bool:
    return str(row.get("exception", "")).startswith(_MISSING)


def _worse_row(row: Row, old: Row, allowed: float) -> list[str]:
    if "exception" in row:
        return [] if "exception" in old else [f"{_name(row)}: {row['exception']}"]
    if row.get("ratio") is None or old.get("ratio") is None:
        return []
    lowest, highest = row.get("ratio_low", row["ratio"]), old.get("ratio_high", old["ratio"])
    if lowest <= (1 + allowed) * highest:
        return []
    return [f"{_name(row)}: {row['ratio']:.3g} times the plain pass, was {old['ratio']:.3g}"]


def _name(row: Row) -> str:
    return " / ".join(part for part in key_of(row) if part)
