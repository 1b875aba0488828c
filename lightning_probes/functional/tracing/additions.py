"""Residual additions of a pass, found by following the data: sums of a skip connection and a branch with parameters.

An addition of two tensors of equal shape, with the samples in dim 0 or 1, is residual in one of two cases:

- identity: one operand, up to rearrangements and pooling, is an ancestor of the other, by way of a parameter.
- projection: the latest common ancestor leads to one operand by an affine way with parameters, such as a convolution
  and BatchNorm, and to the other by one that is not affine.

What a custom autograd function, compiled or scripted code computes in a layer counts as computed from the layer's
inputs and parameters, if gradients are on. An addition inside such code is not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_probes.functional.tracing.functions import FunctionCall, tensors, watch_functions
from lightning_probes.functional.tracing.origins import (
    AFFINE,
    Origin,
    Origins,
    ancestors,
    between,
    fewest_weights,
)

_ADDS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})


@dataclass(frozen=True)
class Addition:
    """A residual addition.

    Attributes:
        name: The block: the submodule that returned the branch operand, or the one in which the addition is. The second
            block of one name is `name#2`, and so on.
        skip: Which of the operands is the skip connection: 0 or 1.
        before: Position of the addition whose result is this one's skip operand, if that has the same shape; what
            stands between them is no block. None if this addition begins a stage.
    """

    name: str
    skip: int
    before: int | None


@dataclass(frozen=True)
class Course:
    """The additions of two tensors in a pass, by which later passes are recognised.

    Attributes:
        sums: The layer of each addition of two such tensors, in order.
        found: The residual ones among them, by position.
    """

    sums: tuple[str, ...] = ()
    found: dict[int, Addition] = field(default_factory=dict)

    @property
    def additions(self) -> list[Addition]:
        """The residual additions in order."""
        return [*self.found.values()]

    @property
    def stages(self) -> list[list[int]]:
        """Positions of the additions along each stream of constant shape."""
        stages: dict[int, list[int]] = {}
        for position, addition in enumerate(self.additions):
            stage = [] if addition.before is None else stages.pop(addition.before)
            stages[position] = [*stage, position]
        return [*stages.values()]


class Visitor(Protocol):
    """Sees each residual addition, without gradients being recorded."""

    def operands(self, position: int, addition: Addition, skip: Tensor, branch: Tensor) -> None:
        """Before the addition. A later operation may overwrite the operands."""

    def result(self, position: int, addition: Addition, result: Tensor) -> None:
        """After the addition."""


class Unseen:
    """A visitor that looks at nothing."""

    def operands(self, position: int, addition: Addition, skip: Tensor, branch: Tensor) -> None:
        """Nothing."""

    def result(self, position: int, addition: Addition, result: Tensor) -> None:
        """Nothing."""


def follow_additions(
    module: nn.Module, samples: int, run: Callable[[], Any], visitor: Callable[[], Visitor] = Unseen,
    known: Course | None = None,
) -> tuple[Course, Visitor]:  # fmt: skip
    """Run a pass, and show a visitor its residual additions.

    Args:
        module: The module of a twin.
        samples: Number of samples in the pass.
        run: The pass. It is run again if it does not take the known course.
        visitor: Makes a visitor for a pass.
        known: The course of an earlier pass. With it, additions are recognised by their position, at little cost.

    Returns:
        The course of the pass, and the visitor that has seen it.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.branch = nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.branch(x).relu()
        >>> block, x = Block(), torch.ones(2, 4)
        >>> course, _ = follow_additions(block, 2, lambda: block(x))
        >>> course.additions
        [Addition(name='branch', skip=0, before=None)]
    """
    if known is not None:
        seen = visitor()
        recognising = _Recognising(known, samples, seen)
        with watch_functions(module, recognising.on_call, only=_ADDS):
            run()
        if recognising.agrees and len(known.sums) == recognising.number:
            return known, seen
    seen = visitor()
    finding = _Finding(module, samples, seen)
    with watch_functions(module, finding.on_call, finding.on_enter, finding.on_return):
        run()
    return Course(tuple(finding.sums), finding.found), seen


def sample_dim(tensor: Tensor, samples: int) -> int | None:
    """The dim of the samples: 0, or in (tokens, samples, ...) 1; None if neither has their number.

    Example:
        >>> sample_dim(torch.zeros(5, 8, 3), 8), sample_dim(torch.zeros(5, 8), 8)
        (1, None)
    """
    candidates = range(min(1, tensor.ndim)) if tensor.ndim < 3 else (0, 1)  # in two dims, the second are features
    return next((dim for dim in candidates if tensor.shape[dim] == samples), None)


def _operands(call: FunctionCall, samples: int) -> Sequence[Tensor] | None:
    """The two tensors that a call adds, if it adds two that a residual addition could add."""
    if call.name not in _ADDS or call.kwargs.get("alpha", 1) != 1:
        return None
    both = call.tensors
    if len(both) != 2 or not all(map(_is_plain, both)) or both[0].shape != both[1].shape:
        return None
    return both if both[0].ndim >= 2 and sample_dim(both[0], samples) is not None else None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and tensor.is_floating_point()


def _visited(
    call: FunctionCall, visitor: Visitor, position: int, addition: Addition, operands: Sequence[Tensor]
) -> Any:
    with torch.no_grad():
        visitor.operands(position, addition, operands[addition.skip], operands[1 - addition.skip])
    result = call.run()
    with torch.no_grad():
        visitor.result(position, addition, result)
    return result


class _Recognising:
    """Recognises the additions of a known course.

    Attributes:
        number: Number of sums so far.
        agrees: Whether all of them are those of the known course.
    """

    def __init__(self, course: Course, samples: int, visitor: Visitor) -> None:
        self._course, self._samples, self._visitor = course, samples, visitor
        self._positions = {place: position for position, place in enumerate(course.found)}
        self.number, self.agrees = 0, True

    def on_call(self, call: FunctionCall) -> Any:
        operands = _operands(call, self._samples)
        if operands is None or not self.agrees:
            return call.run()
        place = self.number
        self.number += 1
        self.agrees = self._course.sums[place : self.number] == (call.layer,)
        if not self.agrees or place not in self._positions:
            return call.run()
        return _visited(call, self._visitor, self._positions[place], self._course.found[place], operands)


class _Finding:
    """Finds residual additions by the origins of their operands."""

    def __init__(self, module: nn.Module, samples: int, visitor: Visitor) -> None:
        self._samples, self._visitor = samples, visitor
        self._origins = Origins(module)
        self._returned: dict[Origin, str] = {}  # the layer that returned a tensor last
        self._results: dict[Origin, tuple[int, torch.Size]] = {}
        self._followed: set[int] = set()
        self._names: Counter[str] = Counter()
        self.sums: list[str] = []
        self.found: dict[int, Addition] = {}

    def on_call(self, call: FunctionCall) -> Any:
        operands = _operands(call, self._samples)
        addition = None if operands is None else self._addition(call, operands)
        if addition is None or operands is None:
            result = call.run()
            self._origins.record(call, result)
            return result
        position, shape = len(self.found), operands[0].shape
        self.found[len(self.sums) - 1] = addition
        result = _visited(call, self._visitor, position, addition, operands)
        self._origins.record(call, result)
        self._results[self._origins.of(result)] = position, shape
        return result

    def on_enter(self, layer: str, module: nn.Module, inputs: Any) -> None:
        self._origins.enter(module, inputs)

    def on_return(self, layer: str, output: Any) -> None:
        self._origins.leave(output)
        for tensor in tensors(output):
            self._returned[self._origins.of(tensor)] = layer

    def _addition(self, call: FunctionCall, operands: Sequence[Tensor]) -> Addition | None:
        self.sums.append(call.layer)
        origins = [self._origins.of(operand) for operand in operands]
        skip = skip_operand(*origins)
        if skip is None:
            return None
        block = self._block(origins[1 - skip]) or call.layer or "root"
        self._names[block] += 1
        name = block if self._names[block] == 1 else f"{block}#{self._names[block]}"
        return Addition(name, skip, self._before(origins[skip], operands[skip].shape))

    def _block(self, branch: Origin) -> str | None:
        """The layer that returned the branch, perhaps before it was scaled by a parameter."""
        while branch not in self._returned and len(branch.data) == 1:
            branch = branch.data[0]
        return self._returned.get(branch)

    def _before(self, skip: Origin, shape: torch.Size) -> int | None:
        for origin, _ in ancestors(skip):
            if origin in self._results:
                before, then = self._results[origin]
                if then != shape or before in self._followed:
                    return None
                self._followed.add(before)
                return before
        return None


def skip_operand(first: Origin, second: Origin) -> int | None:
    """Which of two operands is the skip connection, 0 or 1; None if their sum is no residual addition."""
    if first.constant or second.constant:
        return None
    for skip, (one, other) in enumerate(((first, second), (second, first))):
        if fewest_weights(other, one.stripped()):
            return skip
    common = next((origin for origin, leads in ancestors(first, second) if len(leads) == 2), None)
    if common is None:
        return None
    ways = [between(operand, common) for operand in (first, second)]
    affine = [all(origin.operation in AFFINE and len(origin.data) == 1 for origin in way) for way in ways]
    weighted = [any(origin.weighted for origin in way) for way in ways]
    for skip in (0, 1):
        if affine[skip] and weighted[skip] and not affine[1 - skip]:
            return skip
    return None
