"""Lightning's clocks stand still while a probe works, so that `max_time` is time for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_probes.probing.origin import names_in

_STAGE = "train"


@contextmanager
def clocks_stopped(trainer: Any, info: Callable[[str], None]) -> Iterator[None]:
    """Take what passes meanwhile off the training time of every `Timer`, of which `max_time` is one.

    A block inside another is not taken off twice.

    Args:
        trainer: The Trainer.
        info: Says that this can't be done.
    """
    timers = [callback for callback in trainer.callbacks if _is_timer(callback)]
    before = [timer.time_elapsed(_STAGE) for timer in timers]
    try:
        yield
    finally:
        for timer, elapsed in zip(timers, before, strict=True):
            try:
                if timer._start_time[_STAGE] is not None:
                    timer._start_time[_STAGE] += timer.time_elapsed(_STAGE) - elapsed
            except (AttributeError, KeyError, TypeError):  # it is not public
                info("max_time= and Timer count the time of probes in this version of Lightning")


def _is_timer(callback: Any) -> bool:
    """Whether this is the `Timer` of either Lightning, or of a class made from it."""
    return "Timer" in names_in(type(callback))
