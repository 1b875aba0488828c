"""The height of the Fisher trace over a run: its peak, its peak at equal loss, and its explosion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lightning_probes.functional.peak import peak_at_loss
from lightning_probes.results import Flag

History: TypeAlias = Sequence[Mapping[str, float]]


def peaks(history: History, name: str, quantity: str, at_loss: float | None) -> dict[str, float]:
    """Largest trace so far, its ratio to the first, and the largest until the loss had fallen to `at_loss`.

    Args:
        history: The probe's measurements, oldest first.
        name: The probe's name, the prefix of the keys of `history`.
        quantity: The key of the trace.
        at_loss: See `peak_at_loss`.

    Example:
        >>> peaks([{"fisher/trace": 2.0}, {"fisher/trace": 6.0}], "fisher", "trace", None)
        {'trace_max': 6.0, 'explosion_ratio': 3.0}
    """
    traces = _values(history, f"{name}/{quantity}")
    if not traces:
        return {}
    extremes = {f"{quantity}_max": max(traces)}
    if traces[0]:
        extremes["explosion_ratio"] = max(traces) / traces[0]
    both = [entry for entry in history if f"{name}/{quantity}" in entry and f"{name}/loss" in entry]
    peak = peak_at_loss(_values(both, f"{name}/{quantity}"), _values(both, f"{name}/loss"), at_loss)
    return extremes if peak is None else {**extremes, f"{quantity}_max_at_loss": peak}


def explosion(trace: float, history: History, key: str, factor: float) -> Flag:
    """Raised when the trace exceeds the first one of the run by a factor.

    Args:
        trace: The trace of this measurement.
        history: The probe's earlier measurements, oldest first.
        key: The full key of the trace.
        factor: How many times the first trace is too much.

    Example:
        >>> explosion(9.0, [{"fisher/trace": 2.0}], "fisher/trace", factor=4).raised
        True
    """
    first = next(iter(_values(history, key)), trace)
    return Flag(
        "explosion", trace > factor * first, trace, factor * first,
        f"the trace is {trace:.3g}, over {factor:g} times the first one ({first:.3g})",
    )  # fmt: skip


def _values(history: History, key: str) -> list[float]:
    return [entry[key] for entry in history if key in entry]
