"""Report an event to the run and its loggers, and turn errors into warnings where the user asks for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_probes.probing.isolation.quiet import measuring
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.user_code import brief_sentence
from lightning_probes.reporting import Event, alert, log_event, write_summary
from lightning_probes.results import Flag

OnFlag: TypeAlias = Literal["log", "alert", "stop"]
OnError: TypeAlias = Literal["raise", "warn"]


def announce(run: Run, event: Event, on_flag: OnFlag) -> None:
    """Report an event, and act on the flags that were raised with it.

    The scalars are published in every process, so that `ModelCheckpoint` and `EarlyStopping` can monitor them. Only the
    first process reports them to the loggers.

    Args:
        run: The run.
        event: The results of one measurement.
        on_flag: What happens, besides logging, when a flag of level "warning" is raised.
    """
    run.publish(event.scalars)
    if run.is_first:
        log_event(run.loggers, event)
    for flag in event.flags:
        _act(run, flag, on_flag)


def _act(run: Run, flag: Flag, on_flag: OnFlag) -> None:
    message = f"{flag.key}: {flag.message}" if flag.message else flag.key
    if flag.level == "info":
        rank_zero_info(message)
        return
    rank_zero_warn(message)
    if on_flag != "log" and run.is_first:
        alert(run.loggers, flag)
    if on_flag == "stop" and run.stop() and run.is_first:
        write_summary(run.loggers, {"probes/stopped_by": flag.key})


@contextmanager
def guarded(run: Run, name: str, on_error: OnError, say: Speaker) -> Iterator[None]:
    """Run the block while the run waits, with its clocks stopped.

    An error ends the fit. With `on_error="warn"` it becomes a warning and is logged as `<name>/error`.
    """
    with run.waiting(say.info):
        try:
            with measuring():
                yield
        except Exception as error:
            # A W&B agent stops a trial in a thread by raising a bare Exception there, at any line.
            if on_error == "raise" or (type(error) is Exception and not error.args):
                raise
            say.warn(f"failed and was left out: {brief_sentence(error)}")
            if run.is_first:
                try:
                    log_event(run.loggers, Event(run.step, name, {f"{name}/error": 1.0}))
                except Exception as other:  # the loggers themselves have failed
                    say.warn(f"could not log its error: {other}")
