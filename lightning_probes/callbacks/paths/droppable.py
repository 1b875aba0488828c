"""Which units of a model a probe drops, and which it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.callbacks.paths.units import find_units
from lightning_probes.functional.units.dropping import Layer, has_one_producer, layers_of
from lightning_probes.functional.units.groups import Group
from lightning_probes.probing.layers import select_layers
from lightning_probes.probing.view import ModelView


@dataclass(frozen=True)
class Droppable:
    """The units to drop, layer by layer.

    Attributes:
        layers: In the order of the module's parameters, which is mostly that of the forward pass.
        left_out: Names of the other groups that a weight reads.
    """

    layers: Sequence[Layer]
    left_out: Sequence[str]

    @property
    def groups(self) -> list[Group]:
        """All groups."""
        return [group for layer in self.layers for group in layer.groups]


def droppable_units(view: ModelView, chosen: str | Sequence[str] | None) -> Droppable:
    """Find the model's groups of units, and choose from those that a weight reads.

    Args:
        view: The model.
        chosen: Names or globs of groups. None chooses those that a single module computes, or all if there are none.

    Raises:
        MisconfigurationException: If the model has no groups, or a name or glob matches none.
    """
    groups = [group for group in find_units(view).groups if group.readers]
    names = [group.name for group in groups]
    if not groups:
        raise MisconfigurationException(
            f"{type(view.module).__name__} has no hidden units that can be exchanged with one another, so there is no "
            "half of them to drop"
        )
    single = [group.name for group in groups if has_one_producer(group)]
    kept = (single or names) if chosen is None else select_layers(chosen, names)
    return Droppable(
        layers_of(group for group in groups if group.name in kept), [name for name in names if name not in kept]
    )
