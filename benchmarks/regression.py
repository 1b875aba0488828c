"""Whether ratios got worse than those of the committed table."""

from __future__ import annotations

from benchmarks.table import Results, Row, key_of

ALLOWED = 0.25


def worse(new: Results, committed: Results, allowed: float = ALLOWED) -> list[str]:
    """What is worse, one line each.

    A ratio is worse when even its lower quartile exceeds the committed upper quartile by more than `allowed`: noise
    moves both. Budgets that held and do not any more count as well, and cells of ours that raise now. Other people's
    tools are not judged, nor rows that one of the two tables lacks.
    """
    lines = []
    for kind in ("rows", "idle", "training"):
        before = {key_of(row): row for row in getattr(committed, kind)}
        for row in getattr(new, kind):
            old = before.get(key_of(row))
            if old is not None and str(row.get("tool", "ours")).startswith("ours"):
                lines += _worse_row(row, old, allowed)
    held = {key_of(row) for row in committed.budgets if row.get("holds")}
    lines += [
        f"{row['what']}: {row.get('exception') or row.get('measured')}, must be {row.get('budget')}"
        for row in new.budgets
        if key_of(row) in held and not row.get("holds")
    ]
    return lines


def _worse_row(row: Row, old: Row, allowed: float) -> list[str]:
    name = " / ".join(part for part in key_of(row) if part)
    if "exception" in row:
        return [] if "exception" in old else [f"{name}: {row['exception']}"]
    if row.get("ratio") is None or old.get("ratio") is None:
        return []
    lowest, highest = row.get("ratio_low", row["ratio"]), old.get("ratio_high", old["ratio"])
    if lowest <= (1 + allowed) * highest:
        return []
    return [f"{name}: {row['ratio']:.3g} times the plain pass, was {old['ratio']:.3g}"]
