"""Telling the run, its loggers and its owner what a probe has measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_probes.probing.isolation.quiet import measuring
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.timers import clocks_stopped
from lightning_probes.probing.run.trainer import logger_step
from lightning_probes.probing.user_code import brief_sentence
from lightning_probes.reporting import Event, alert, report, write_summary
from lightning_probes.results import Flag

OnFlag: TypeAlias = Literal["log", "alert", "stop"]
OnError: TypeAlias = Literal["raise", "warn"]


def announce(trainer: Any, event: Event, on_flag: OnFlag) -> None:
    """Report an event and act on the flags that have risen with it.

    The scalars are put into `trainer.callback_metrics` in every process, so that `ModelCheckpoint` and
    `EarlyStopping` can monitor them; loggers hear of them from the first process alone.

    Args:
        trainer: The Trainer.
        event: What was measured.
        on_flag: What a flag of level warning does besides being logged.
    """
    trainer.callback_metrics.update({key: torch.tensor(value) for key, value in event.scalars.items()})
    if trainer.is_global_zero:
        report(trainer.loggers, event)
    for flag in event.flags:
        _act(trainer, flag, on_flag)


def _act(trainer: Any, flag: Flag, on_flag: OnFlag) -> None:
    message = f"{flag.key}: {flag.message}" if flag.message else flag.key
    if flag.level == "info":
        rank_zero_info(message)
        return
    rank_zero_warn(message)
    if on_flag != "log" and trainer.is_global_zero:
        alert(trainer.loggers, flag)
    if on_flag == "stop":
        stops_now, trainer.should_stop = not trainer.should_stop, True
        if stops_now and trainer.is_global_zero:
            write_summary(trainer.loggers, {"probes/stopped_by": flag.key})


@contextmanager
def guarded(trainer: Any, name: str, on_error: OnError, say: Speaker) -> Iterator[None]:
    """Work while the run waits: its clocks stand still. An error ends the fit, or is a warning and `<name>/error`."""
    with clocks_stopped(trainer, say.info):
        try:
            with measuring():
                yield
        except Exception as error:
            # A bare Exception is how a W&B agent stops a trial that runs in a thread, wherever that is.
            if on_error == "raise" or (type(error) is Exception and not error.args):
                raise
            say.warn(f"failed and was left out: {brief_sentence(error)}")
            if trainer.is_global_zero:
                try:
                    report(trainer.loggers, Event(logger_step(trainer), name, {f"{name}/error": 1.0}))
                except Exception as other:  # the loggers are what has failed
                    say.warn(f"could not log its error: {other}")
