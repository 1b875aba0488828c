"""Send an event to every logger, in the form that this logger can show."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lightning_probes.reporting import static
from lightning_probes.reporting.event import Event
from lightning_probes.reporting.wandb import logger as wandb
from lightning_probes.results import Flag


def log_event(loggers: Sequence[Any], event: Event) -> None:
    """Log an event: scalars to every logger, pictures to W&B and TensorBoard, summary values and flag rows to W&B.

    Call it on rank 0. On other ranks loggers are dummies, and nothing is logged.

    Args:
        loggers: `trainer.loggers`; may be empty.
        event: The event.
    """
    for logger in loggers:
        if _is(logger, "WandbLogger"):
            wandb.log_row(logger, event)
            continue
        if event.scalars:
            logger.log_metrics(dict(event.scalars), step=event.step)
            _save(logger)
        if event.pictures and _is(logger, "TensorBoardLogger") and find_spec("matplotlib") is not None:
            for picture in event.pictures:
                image = static.pixels(picture.figure())
                key = wandb.prefixed(logger, picture.key)
                logger.experiment.add_image(key, image, event.step, dataformats="HWC")


def _save(logger: Any) -> None:
    """Make a logger write its rows now: some write only every hundred rows, and the process may end before.

    If this fails, for example because the disk is full, it is only a warning: without the probe the logger would not
    have written now.
    """
    try:
        logger.save()
    except OSError as error:
        warnings.warn(f"{type(logger).__name__} could not write the results of probes: {error}", stacklevel=2)


def write_summary(loggers: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Write values such as `{"probes/stopped_by": "sharpness/flag/unstable"}` to the summary of every W&B run.

    Args:
        loggers: `trainer.loggers`.
        values: Numbers or text by full key.
    """
    for logger in _wandb_loggers(loggers):
        wandb.write_summary(logger, values)


def record_settings(loggers: Sequence[Any], name: str, settings: Mapping[str, Any]) -> None:
    """Record the settings of a probe as `config["probes"][name]` of every W&B run.

    Args:
        loggers: `trainer.loggers`.
        name: Name of the probe.
        settings: Values that JSON can hold.
    """
    for logger in _wandb_loggers(loggers):
        wandb.record_settings(logger, name, settings)


def alert(loggers: Sequence[Any], flag: Flag) -> None:
    """Send a W&B alert for a flag that was raised.

    Args:
        loggers: `trainer.loggers`.
        flag: The flag under its full key.
    """
    for logger in _wandb_loggers(loggers):
        wandb.alert(logger, flag)


def _wandb_loggers(loggers: Sequence[Any]) -> list[Any]:
    return [logger for logger in loggers if _is(logger, "WandbLogger")]


def _is(logger: Any, name: str) -> bool:
    """Whether a logger has a class of this name: `lightning` and `pytorch_lightning` each have their own class."""
    return any(cls.__name__ == name for cls in type(logger).__mro__)
