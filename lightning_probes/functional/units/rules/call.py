"""A call of an operation, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from lightning_probes.functional.units.evidence import Evidence
from lightning_probes.functional.units.labels import Labels


class NoRuleError(Exception):
    """A rule does not cover this call."""


@dataclass(frozen=True)
class Call:
    """A call of an operation.

    Attributes:
        operation: Of ATen.
        arguments: By their names in the operation's schema, with defaults.
        known: Labels of the tensors among the arguments, by id.
        outputs: Tensors that were returned.
        evidence: Where rules note what they find.
    """

    operation: OpOverload
    arguments: Mapping[str, Any]
    known: Mapping[int, Labels]
    outputs: tuple[Tensor, ...]
    evidence: Evidence

    def __getitem__(self, name: str) -> Any:
        """An argument; `None` where the operation has none of this name."""
        return self.arguments.get(name)

    def labels(self, argument: str) -> Labels | None:
        """Labels of an argument; `None` where no tensor was passed."""
        tensor = self[argument]
        return self.known[id(tensor)] if isinstance(tensor, Tensor) else None

    def tensor(self, argument: str) -> Labels:
        """Labels of an argument that is a tensor."""
        labels = self.labels(argument)
        if labels is None:
            raise NoRuleError
        return labels

    @property
    def operands(self) -> list[Labels]:
        """Labels of all tensors among the arguments."""
        return [self.known[id(leaf)] for leaf in tree_leaves(tuple(self.arguments.values())) if id(leaf) in self.known]

    @property
    def input(self) -> Labels:
        """Labels of the first tensor."""
        return self.operands[0]

    @property
    def axis(self) -> int:
        """The argument `dim`, counted from the front of the first tensor."""
        dim: int = self["dim"]
        return dim % max(1, len(self.input.shape))

    def repeated(self, array: Tensor) -> list[Tensor]:
        """The same operation with an array of nodes in place of the first argument."""
        positional, keywords = [], {}
        for argument in self.operation._schema.arguments[1:]:
            if argument.kwarg_only:
                keywords[argument.name] = self.arguments[argument.name]
            else:
                positional.append(self.arguments[argument.name])
        result = self.operation(array, *positional, **keywords)
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def labelled(self, *factors: Tensor, output: int = 0) -> Labels:
        """Labels of an output."""
        return Labels(tuple(self.outputs[output].shape), factors)


Rule: TypeAlias = Callable[[Call], list[Labels]]
"""Notes the evidence of a call. Returns labels of the outputs; those of further outputs may be left out: none."""


def bound(operation: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the operation's schema, with defaults."""
    names = [argument.name for argument in operation._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {argument.name: given.get(argument.name, argument.default_value) for argument in operation._schema.arguments}


def is_random(operation: OpOverload) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in operation.tags
