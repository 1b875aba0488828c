"""A callback that stops a fit by a probe's key needs a new value at each of its checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.schedules import Schedule

_EPOCHS = 100  # how far to look ahead: enough to notice a schedule whose intervals grow


def warn_of_stale_values(trainer: Any, name: str, schedules: Sequence[Schedule], step: int, say: Speaker) -> None:
    """Warn if a key of the probe is monitored in each epoch, but not measured in each epoch.

    Until the next measurement `callback_metrics` keep the old value, which counts as no improvement.
    """
    monitors = [(type(c).__name__, getattr(c, "monitor", None)) for c in trainer.callbacks]
    monitors += [(type(c.scheduler).__name__, c.monitor) for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
    for who, key in monitors:
        if isinstance(key, str) and key.startswith(f"{name}/") and not _each_epoch(trainer, schedules, step):
            say.warn(
                f"{who} monitors {key!r}, which is not measured in each epoch, and an unchanged value counts as no "
                'improvement: pass on_flag="stop" instead, or schedule=EveryNEpochs(1) and a threshold such as '
                "EarlyStopping(stopping_threshold=...)"
            )


def _each_epoch(trainer: Any, schedules: Sequence[Schedule], step: int) -> bool:
    """Whether a measurement is due in each of the next epochs, at a step or at the end."""
    left = _EPOCHS if trainer.max_epochs in (None, -1) else trainer.max_epochs - trainer.current_epoch
    batches = trainer.num_training_batches  # infinite if the length of the data is not known
    steps = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else 0
    for ahead in range(min(left, _EPOCHS)):
        first = step + ahead * steps
        due = [schedule.next_step(first - 1) for schedule in schedules]
        at_step = any(found is not None and found < first + steps for found in due)
        if not at_step and not any(schedule.at_epoch_end(trainer.current_epoch + ahead) for schedule in schedules):
            return False
    return True
