"""Flags for a stability ratio: training is at the edge of stability, or above it while the loss does not fall."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from lightning_probes.results import Flag


def stability_flags(
    ratio: float, loss: float, history: Sequence[Mapping[str, float]], name: str, threshold: float
) -> Iterator[Flag]:
    """Raise `edge_of_stability` at ratios of at least 1, and `unstable` if the learning rate is too large.

    The ratio alone is not enough, because training may pass through a phase with a large ratio and still learn. So
    `unstable` needs two measurements in a row over the threshold, and a loss that has not fallen since the ratio was
    below it.

    Args:
        ratio: The stability ratio of this measurement.
        loss: The loss on the same samples.
        history: The probe's earlier measurements, oldest first.
        name: The probe's name, the prefix of the keys of `history`.
        threshold: The ratio above which `unstable` may be raised.

    Yields:
        Both flags, raised or not.

    Example:
        >>> history = [{"sharpness/stability_ratio": 0.9, "sharpness/loss": 2.1},
        ...            {"sharpness/stability_ratio": 8.0, "sharpness/loss": 3.4}]
        >>> [flag.key for flag in stability_flags(5.0, 3.0, history, "sharpness", 2.0) if flag.raised]
        ['edge_of_stability', 'unstable']
        >>> [flag.key for flag in stability_flags(5.0, 2.0, history, "sharpness", 2.0) if flag.raised]
        ['edge_of_stability']
    """
    yield Flag(
        "edge_of_stability", ratio >= 1, ratio, 1.0,
        f"sharpness is {ratio:.2f} times the stability threshold: normal while the loss falls over many steps",
        level="info",
    )  # fmt: skip
    before = history[-1].get(f"{name}/stability_ratio", 0.0) if history else 0.0
    last_stable = _last_stable(history, f"{name}/stability_ratio", threshold).get(f"{name}/loss", math.nan)
    yield Flag(
        "unstable", min(ratio, before) > threshold and not loss < last_stable, ratio, threshold,
        f"sharpness was over {threshold:g} times the stability threshold twice in a row, now {ratio:.2f} times, and "
        f"the loss has not fallen since ({last_stable:.3g} before, now {loss:.3g}): lower the learning rate",
    )  # fmt: skip


def _last_stable(history: Sequence[Mapping[str, float]], key: str, threshold: float) -> Mapping[str, float]:
    """The last measurement with a ratio not over the threshold; the first measurement if there is none."""
    stable = (entry for entry in reversed(history) if entry.get(key, math.inf) <= threshold)
    return next(stable, history[0] if history else {})
