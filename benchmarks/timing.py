"""Ratios on a noisy machine: A and B in turn, in one process, on the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = CLOCKS["wall"]


def use_clock(name: str) -> None:
    """Time by the wall, or by the CPU time of this process: of one thread, that holds on a busy machine too."""
    global _clock
    _clock = CLOCKS[name]


def now() -> float:
    """Seconds on the clock in use."""
    return _clock()


@dataclass(frozen=True)
class Timing:
    """Seconds of A (plain) and of B (the tool), one entry a round."""

    plain: Sequence[float]
    tool: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median of the ratios of single rounds: of neighbours in time, because machines drift."""
        return statistics.median(self._ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the ratios of single rounds."""
        ratios = self._ratios
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high

    @property
    def _ratios(self) -> list[float]:
        return [tool / plain for plain, tool in zip(self.plain, self.tool, strict=True)]


def seconds(run: Callable[[], Any], at_least: float = 0.0) -> float:
    """Seconds of one call: the mean over as many as fill `at_least`."""
    calls, start = 0, now()
    while True:
        run()
        calls += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        passed = now() - start
        if passed >= at_least:
            return passed / calls


def alternate(
    plain: Callable[[], Any], tool: Callable[[], Any], rounds: int, at_least: float = 0.1, limit: float = 90.0
) -> Timing:
    """Time both in turn; who goes first changes every round.

    Args:
        plain: A.
        tool: B.
        rounds: How often; ends earlier, after one at least, once `limit` has passed.
        at_least: Seconds that each fills in a round, so that a short one is not measured by a tick of the clock.
        limit: Seconds for all rounds.
    """
    times: dict[str, list[float]] = {"plain": [], "tool": []}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 1 and time.perf_counter() - start > limit:
            break
        for name, run in (("plain", plain), ("tool", tool))[:: -1 if number % 2 else 1]:
            times[name].append(seconds(run, at_least))
    return Timing(**times)
