"""What operations do to units: a rule for each, by its name in ATen.

An operation that works in place, such as `add_`, has the rule of the one that does not. An operation without a rule
fixes the units of all tensors that enter it. So a missing rule loses symmetry, and breaks no network.
"""

from __future__ import annotations

import torch
from torch._ops import OpOverload

from lightning_probes.functional.units.rules import (
    cells,
    contractions,
    meetings,
    rearrangements,
    reductions,
    scattering,
)
from lightning_probes.functional.units.rules.call import Rule, is_random

RULES: dict[str, Rule] = {
    name: rule
    for rules in (meetings, rearrangements, scattering, contractions, reductions, cells)
    for name, rule in rules.RULES.items()
}


def rule_for(operation: OpOverload) -> Rule | None:
    """The rule of an operation; `None` without one, and where the operation draws random numbers."""
    if is_random(operation):
        return None
    if torch.Tag.pointwise in operation.tags and base_name(operation) not in rearrangements.RULES:
        return meetings.pointwise
    return RULES.get(base_name(operation))


def rearranges(operation: OpOverload) -> bool:
    """Whether an operation does nothing but rearrange entries of one tensor."""
    return base_name(operation) in rearrangements.REARRANGEMENTS


def base_name(operation: OpOverload) -> str:
    """The name of an operation without its namespace, overload, and the underscore of those that work in place."""
    namespace, _, name = operation._schema.name.partition("::")
    return name.rstrip("_") if namespace == "aten" else f"{namespace}::{name}"
