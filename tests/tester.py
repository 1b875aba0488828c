"""The probes of this package for the shared tester, `lightning_probes.testing`: on little data, at few steps."""

from __future__ import annotations

from typing import Any

from lightning_probes import (
    AtFitEnd,
    AttentionDistance,
    DropoutStability,
    EveryNSteps,
    FisherTrace,
    GradientFlow,
    Head2Toe,
    InitInterpolation,
    LayerCKA,
    LinearProbes,
    LossPlane,
    Probe,
    ResidualFlow,
    Sharpness,
    TrainingRegime,
)
from lightning_probes.testing.digests import digest, flatten
from lightning_probes.testing.fingerprint import Flat, assert_same, attributes, fingerprint, hooks, state_of
from lightning_probes.testing.fitting import Recorder, Run, fit
from lightning_probes.testing.surroundings import generators, settings
from lightning_probes.testing.zoo import CASES, EVERY_CASE
from tests.callbacks.paths.sibling import ToSibling

__all__ = [
    "BY_LOGITS", "EVERY", "PROBES", "REFUSES", "Flat", "Recorder", "Run", "assert_same", "attributes", "digest",
    "fingerprint", "fit", "flatten", "generators", "hooks", "probe", "public_name", "settings", "state_of", "told",
]  # fmt: skip

# Those that measure any network with layers.
PROBES: dict[str, type[Probe]] = {
    "fisher": FisherTrace,
    "interpolation": InitInterpolation,
    "cka": LayerCKA,
    "sharpness": Sharpness,
    "connectivity": ToSibling,
    "plane": LossPlane,
    "dropout": DropoutStability,
    "regime": TrainingRegime,
    "linear": LinearProbes,
    "gradient_flow": GradientFlow,
    "head2toe": Head2Toe,
}
# And those that need residual additions, or attention; `tests.complete` has a network for all.
EVERY: dict[str, type[Probe]] = {**PROBES, "residual": ResidualFlow, "attention": AttentionDistance}
BY_LOGITS = ("fisher", "linear", "head2toe")  # which need no loss
SMALL: dict[str, dict[str, Any]] = {
    "interpolation": {"num_alphas": 4},
    "connectivity": {"num_alphas": 3},
    "plane": {"resolution": 3},
    "dropout": {"halves": 2},
    "head2toe": {"fraction": 0.3},
}
# Cases of the zoo without the targets, layers or operations that a probe is about.
WITHOUT_LABELS = frozenset({"gpt2", "multi_label", "gan", "inputs_with_weighted_targets"})  # one for each sample
BLOCKS, ATTENTION = frozenset({"resnet", "bert", "vit", "gpt2"}), frozenset({"bert", "vit", "gpt2"})
REFUSES: dict[str, frozenset[str]] = {
    "linear": WITHOUT_LABELS,
    "head2toe": WITHOUT_LABELS | {"regression", "unscales_in_eval", "random_windows"},
    "gradient_flow": frozenset({"graph_batch"}),
    "residual": frozenset(EVERY_CASE.keys() - BLOCKS),
    "attention": frozenset(EVERY_CASE.keys() - ATTENTION),
}


def probe(kind: str, **arguments: Any) -> Probe:
    """A probe by its kind, on little data, measured at step 2 and at the end."""
    defaults = {"num_samples": 24, "micro_batch_size": 8, "schedule": [EveryNSteps(2, start=2, stop=2), AtFitEnd()]}
    return EVERY[kind](**{**defaults, **SMALL.get(kind, {}), **arguments})


def public_name(kind: type[Probe]) -> str:
    """The name under which users know a probe."""
    return next(each.__name__ for each in kind.__mro__ if each.__module__.startswith("lightning_probes."))


def told(case: str, kind: str) -> dict[str, Any]:
    """What a probe needs to be given on a case of the zoo."""
    return CASES[case].arguments_for(EVERY[kind])
