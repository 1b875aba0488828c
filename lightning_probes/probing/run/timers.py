"""Stop Lightning's clocks while a probe measures, so that `max_time` counts only training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_probes.probing.origin import names_in

_STAGE = "train"


@contextmanager
def clocks_stopped(trainer: Any, info: Callable[[str], None]) -> Iterator[None]:
    """Subtract the time of the block from the training time of every `Timer`, and of `max_time`.

    The time of a nested block is subtracted only once.

    Args:
        trainer: The Trainer.
        info: Called with a message if the time can't be subtracted.
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
            except (AttributeError, KeyError, TypeError):  # these attributes are not public
                info("max_time= and Timer include the time of probes in this version of Lightning")


def _is_timer(callback: Any) -> bool:
    """Whether this is a `Timer` of `lightning` or `pytorch_lightning`, or of a subclass."""
    return "Timer" in names_in(type(callback))
