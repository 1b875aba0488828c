"""The measurements of a probe so far, and how the results of an event are added."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from lightning_probes.probing.values import in_short
from lightning_probes.results import Drawn, Flag, Result, Scalar, finite


@dataclass
class Record:
    """The measurements of one probe in one run.

    Attributes:
        history: One entry per event: `step`, `epoch` and every finite scalar under its full key.
        trail: Curves, heatmaps and surfaces by full key, each with the step of its event, oldest first.
        results: The latest result under each full key.
        risen: The flags that were raised, each with the step of its event, oldest first.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    trail: dict[str, list[tuple[int, Drawn]]] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    risen: list[tuple[int, Flag]] = field(default_factory=list)

    def add(self, step: int, epoch: int, results: Mapping[str, Result], extra: Mapping[str, float]) -> list[Flag]:
        """Add an event.

        Args:
            step: The logger's step.
            epoch: The epoch.
            results: Results by full key.
            extra: Further finite scalars by full key, such as the seconds spent.

        Returns:
            The newly raised flags: raised now, but not at the previous event.
        """
        before = self.history[-1] if self.history else {}
        self.results.update(results)
        self.history.append({"step": step, "epoch": epoch, **scalars(results.values()), **extra})
        for key, result in results.items():
            if isinstance(result, Drawn):
                self.trail.setdefault(key, []).append((step, result))
        flags = [result for result in results.values() if isinstance(result, Flag)]
        risen = [flag for flag in flags if flag.raised and not before.get(flag.key)]
        self.risen += [(step, flag) for flag in risen]
        return risen


def listed(found: object) -> list[Result]:
    """The results that a callback has returned or yielded, as a list.

    Raises:
        TypeError: If one of them is not a result.

    Example:
        >>> listed(Scalar("trace", value) for value in [2.0])
        [Scalar(key='trace', value=2.0, standard_error=None, detail=False)]
    """
    results: list[Any] = list(found) if isinstance(found, Iterable) else [found]
    if strange := [result for result in results if not isinstance(result, get_args(Result))]:
        raise TypeError(
            f"it must return or yield results such as Scalar('trace', 1.0), or () for none, got {in_short(strange[0])}"
        )
    return results


def named(name: str, results: Iterable[Result]) -> dict[str, Result]:
    """Results by full key, with the flags that every probe has.

    Args:
        name: The probe's name.
        results: Its results, under relative keys.

    Returns:
        The results under `<name>/<key>`, flags under `<name>/flag/<key>`.

    Raises:
        ValueError: If two results have the same key, or one has the key of another's standard error.

    Example:
        >>> measured = named("fisher", [Scalar("trace", float("nan"))])
        >>> measured["fisher/flag/nonfinite"].message
        'not finite: fisher/trace'
    """
    results = list(results)
    by_key = {f"{name}/{_relative(result)}": result for result in results}
    logged = Counter(key for result in results for key in _logged(result))
    if shared := [key for key, times in logged.items() if times > 1]:
        raise ValueError(f"two results of {name!r} have the key {shared[0]!r}: give each a key of its own")
    broken = [key for key, result in by_key.items() if not finite(result)]
    standing = [
        Flag("nonfinite", bool(broken), message=f"not finite: {', '.join(broken)}" if broken else ""),
        Flag("not_converged", False),
    ]
    for flag in standing:
        by_key.setdefault(f"{name}/{_relative(flag)}", flag)
    return {key: replace(result, key=key) for key, result in by_key.items()}


def scalars(results: Iterable[Result]) -> dict[str, float]:
    """The finite numbers among some results: scalars, their standard errors, and flags as 0 or 1.

    If a value is not finite, its standard error is left out too.

    Example:
        >>> scalars([Scalar("trace", 2.0, standard_error=0.1), Flag("sharp", True), Scalar("loss", float("inf"))])
        {'trace': 2.0, 'trace_se': 0.1, 'sharp': 1.0}
    """
    values: dict[str, float] = {}
    for result in results:
        if isinstance(result, Scalar):
            values[result.key] = float(result.value)
            if result.standard_error is not None and math.isfinite(result.value):
                values[f"{result.key}_se"] = float(result.standard_error)
        elif isinstance(result, Flag):
            values[result.key] = float(result.raised)
    return {key: value for key, value in values.items() if math.isfinite(value)}


def details(results: Collection[Result]) -> set[str]:
    """The keys of numbers that only explain others: standard errors, flags, and scalars marked as details.

    Example:
        >>> sorted(details([Scalar("trace", 2.0), Flag("sharp", True), Scalar("loss", 0.5, detail=True)]))
        ['loss', 'loss_se', 'sharp', 'trace_se']
    """
    marked = [r.key for r in results if isinstance(r, Flag) or (isinstance(r, Scalar) and r.detail)]
    return {*marked, *(f"{result.key}_se" for result in results if isinstance(result, Scalar))}


def _logged(result: Result) -> list[str]:
    """The relative keys under which a result is logged."""
    key = _relative(result)
    has_error = isinstance(result, Scalar) and result.standard_error is not None
    return [key, f"{key}_se"] if has_error else [key]


def _relative(result: Result) -> str:
    return f"flag/{result.key}" if isinstance(result, Flag) else result.key
