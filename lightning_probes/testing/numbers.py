"""The results of a callback as plain numbers, and the comparison of two sets of results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lightning_probes.results import Flag, Result, Scalar

Numbers = dict[str, list[float]]
_TIMED = ("/seconds", "/overhead")


def numbers_of_history(callback: Any) -> Numbers:
    """Every scalar of every event, except durations."""
    return {
        f"{key} at step {row['step']:g}": [float(value)]
        for row in callback.history
        for key, value in row.items()
        if key not in ("step", "epoch") and not key.endswith(_TIMED)
    }


def numbers_of(results: Iterable[Result]) -> Numbers:
    """The numbers of some results by key."""
    found: Numbers = {}
    for result in results:
        if isinstance(result, Scalar):
            found[result.key] = [float(result.value)]
            if result.standard_error is not None:
                found[f"{result.key}_se"] = [float(result.standard_error)]
        elif isinstance(result, Flag):
            found[f"flag/{result.key}"] = [float(result.raised)]
        else:
            arrays = {name: value for name, value in vars(result).items() if isinstance(value, np.ndarray)}
            found |= {f"{result.key}.{name}": value.ravel().tolist() for name, value in arrays.items()}
    return found


def differences(found: Mapping[str, list[float]], expected: Mapping[str, list[float]], rel: float, tiny: float) -> str:
    """The differences between two measurements, as text; an empty text if there are none."""
    lines = []
    for key in dict.fromkeys((*expected, *found)):
        one, other = found.get(key), expected.get(key)
        if one is None or other is None:
            lines.append(f"{key} {'is missing' if one is None else 'should not be there'}")
        elif len(one) != len(other):
            lines.append(f"{key} has {len(one)} numbers, but should have {len(other)}")
        else:
            pairs = [pair for pair in zip(one, other, strict=True) if not _close(*pair, rel, tiny)]
            if pairs:
                lines.append(f"{key} is {pairs[0][0]:.9g}, but should be {pairs[0][1]:.9g}")
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "; ".join(lines[:5]) + more


def _close(one: float, other: float, rel: float, tiny: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=rel, abs_tol=tiny)
