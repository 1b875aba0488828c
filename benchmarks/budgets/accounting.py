"""All four probes at their defaults in a fit of CIFAR size, by counting passes.

The schedules are asked for every step of 200 epochs of 50,000 samples; what an event of each probe costs is measured
on a ResNet-20, in forward and backward passes over its samples, or read from the price that the probe declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_probes import FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.probing.run.due import Due
from lightning_probes.probing.schedules import Schedule

SAMPLES, EPOCHS, BATCH = 50_000, 200, 128
FORWARD, PRODUCT = 1 / 3, 2.0  # a forward pass and a Hessian-vector product, in forward and backward passes


@dataclass(frozen=True)
class Share:
    """What one probe costs in the whole fit.

    Attributes:
        events: How often it measures.
        passes: Forward and backward passes over single samples.
        share: Of those of the fit.
    """

    events: int
    passes: float
    share: float


def defaults() -> dict[str, Probe]:
    """The four, as `Trainer(callbacks=[FisherTrace(), ...])` has them."""
    return {probe.name: probe for probe in (FisherTrace(), InitInterpolation(), LayerCKA(), Sharpness())}


def declared() -> dict[str, float]:
    """What one event of each probe costs by the price that it declares, in forward and backward passes.

    Without what is due in some cases only, such as BatchNorm or Adam.
    """
    due = {name: [item for item in probe.price or () if not item.only] for name, probe in defaults().items()}
    return {
        name: sum(FORWARD * item.forward + (1 - FORWARD) * item.backward + PRODUCT * item.products for item in items)
        for name, items in due.items()
    }


def events_of(probe: Probe, epochs: int = EPOCHS, samples: int = SAMPLES, batch: int = BATCH) -> list[int]:
    """Steps of a fit that writes a checkpoint every epoch, as Lightning does by itself, at which a probe measures."""
    schedule: Any = probe.schedule
    due = Due((schedule,) if isinstance(schedule, Schedule) else tuple(schedule))
    due.plan(0)
    steps_an_epoch = -(-samples // batch)
    measured: list[int] = []

    def measure(step: int) -> None:
        if step != due.last_step:
            measured.append(step)
            due.done(step)

    for epoch in range(epochs):
        for step in range(epoch * steps_an_epoch, (epoch + 1) * steps_an_epoch):
            if due.at_step(step, epoch):
                measure(step)
        last = (epoch + 1) * steps_an_epoch
        if due.at_epoch_end(epoch):
            measure(last)
        due.checkpoint_written = True
    if due.at_fit_end(epochs * steps_an_epoch):
        measure(epochs * steps_an_epoch)
    return measured


def shares(cost: Mapping[str, float], first: Mapping[str, float] | None = None) -> dict[str, Share]:
    """The share of each probe.

    Args:
        cost: Of one event of each probe, in forward and backward passes over its samples; of the later events where
            `first` is given.
        first: Of the first event.
    """
    fit = SAMPLES * EPOCHS
    found = {}
    for name, probe in defaults().items():
        sets = len(probe.data) if isinstance(probe.data, (list, tuple)) else 1
        events = len(events_of(probe))
        begin = cost[name] if first is None else first[name]
        passes = (begin + (events - 1) * cost[name]) * probe.num_samples * sets
        found[name] = Share(events, passes, passes / fit)
    return found
