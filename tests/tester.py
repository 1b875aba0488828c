"""The probes of this package for the shared tester, `lightning_probes.testing`: on little data, at few steps."""

from __future__ import annotations

from typing import Any

from lightning_probes import (
    AtFitEnd,
    DropoutStability,
    EveryNSteps,
    FisherTrace,
    InitInterpolation,
    LayerCKA,
    LossPlane,
    Probe,
    Sharpness,
)
from lightning_probes.testing.digests import digest, flatten
from lightning_probes.testing.fingerprint import Flat, assert_same, attributes, fingerprint, hooks, state_of
from lightning_probes.testing.fitting import Recorder, Run, fit
from lightning_probes.testing.surroundings import generators, settings
from lightning_probes.testing.zoo import CASES
from tests.callbacks.paths.sibling import ToSibling

__all__ = [
    "PROBES", "Flat", "Recorder", "Run", "assert_same", "attributes", "digest", "fingerprint", "fit", "flatten",
    "generators", "hooks", "probe", "public_name", "settings", "state_of", "told",
]  # fmt: skip

PROBES: dict[str, type[Probe]] = {
    "fisher": FisherTrace,
    "interpolation": InitInterpolation,
    "cka": LayerCKA,
    "sharpness": Sharpness,
    "connectivity": ToSibling,
    "plane": LossPlane,
    "dropout": DropoutStability,
}
SMALL: dict[str, dict[str, Any]] = {
    "interpolation": {"num_alphas": 4},
    "connectivity": {"num_alphas": 3},
    "plane": {"resolution": 3},
    "dropout": {"halves": 2},
}


def probe(kind: str, **arguments: Any) -> Probe:
    """A probe by its kind, on little data, measured at step 2 and at the end."""
    defaults = {"num_samples": 24, "micro_batch_size": 8, "schedule": [EveryNSteps(2, start=2, stop=2), AtFitEnd()]}
    return PROBES[kind](**{**defaults, **SMALL.get(kind, {}), **arguments})


def public_name(kind: type[Probe]) -> str:
    """The name under which users know a probe."""
    return next(each.__name__ for each in kind.__mro__ if each.__module__.startswith("lightning_probes."))


def told(case: str, kind: str) -> dict[str, Any]:
    """What a probe needs to be given on a case of the zoo."""
    return CASES[case].arguments_for(PROBES[kind])
