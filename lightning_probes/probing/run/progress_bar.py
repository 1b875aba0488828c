"""The progress of a long measurement in Lightning's own progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Show = Callable[[int], None]


@contextmanager
def shown_in_bar(bar: Any, what: str, total: int) -> Iterator[Show]:
    """Show in the description of the training bar how far a measurement has come; the description is then put back.

    Args:
        bar: The Trainer's progress bar: a `TQDMProgressBar` or `RichProgressBar`; of any other, and of None, nothing is
            shown.
        what: What is measured.
        total: Number of steps of the measurement.

    Yields:
        A function that is called with the number of steps done. The bar is drawn again at each percent at most.
    """
    found = _description(bar)
    if found is None:
        yield lambda done: None
        return
    before, write = found
    last = -1

    def show(done: int) -> None:
        nonlocal last
        if (percent := 100 * done // total) != last:
            last = percent
            write(f"{before.rstrip(': ')} ({what} {percent}%): ")

    try:
        yield show
    finally:
        write(before)


def _description(bar: Any) -> tuple[str, Callable[[str], object]] | None:
    """The text before the training bar, and a function that changes it."""
    if not getattr(bar, "is_enabled", False):
        return None
    tqdm: Any = getattr(bar, "_train_progress_bar", None)
    if hasattr(tqdm, "set_description_str"):
        return str(tqdm.desc or ""), tqdm.set_description_str
    rich: Any
    rich, task = getattr(bar, "progress", None), getattr(bar, "train_progress_bar_id", None)
    if rich is None or task is None:
        return None

    def write(text: str) -> None:
        rich.update(task, description=text.removesuffix(": "))
        bar.refresh()

    return str(rich.tasks[task].description), write
