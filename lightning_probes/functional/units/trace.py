"""One pass of a module, during which labels follow tensors through the operations of ATen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_probes.functional.curvature.hvp import double_backward_kernels
from lightning_probes.functional.fast_path import without_fast_path
from lightning_probes.functional.units.evidence import Evidence
from lightning_probes.functional.units.labels import Labels
from lightning_probes.functional.units.memory import Memory, number
from lightning_probes.functional.units.rules import rearranges, rule_for
from lightning_probes.functional.units.rules.call import Call, NoRuleError, bound

USED = "used"
Run = Callable[[Mapping[str, Tensor]], Any]


@dataclass(frozen=True)
class Traced:
    """A traced pass.

    Attributes:
        output: What it returned.
        evidence: What it says about units.
        nodes: The nodes along each axis of each tensor of the state.
        unknown: Operations without a rule that units entered, by name.
    """

    output: Any
    evidence: Evidence
    nodes: Mapping[tuple[str, int], Tensor]
    unknown: tuple[str, ...]


def trace(state: Mapping[str, Tensor], run: Run) -> Traced:
    """Follow the units of a state through one pass. Along the axes of what it returns they are fixed."""
    evidence = Evidence()
    memory = Memory(evidence)
    nodes = number(state, evidence, memory)
    mode = _Following(evidence, memory)
    with mode:
        output = run(state)
    evidence.call += 1
    for leaf in tensors(output):
        for factor in memory.labels(leaf).factors:
            evidence.fix(factor)
    mode.inputs[evidence.call] = frozenset().union(*map(memory.sources, tensors(output)))
    needed = mode.needed_for({evidence.call})
    evidence.forget_all_but(needed)
    unknown = dict.fromkeys(name for call, name in mode.unknown.items() if call in needed)
    return Traced(output, evidence, nodes, tuple(unknown))


@contextmanager
def separate_operations() -> Iterator[None]:
    """Compute layers by separate operations inside the block, in full float32, not by fused ones that have no rule.

    The settings of the process are restored afterwards.
    """
    backends: Any = torch.backends
    onednn = backends.mkldnn.enabled
    try:
        backends.mkldnn.enabled = False
        with without_fast_path(), double_backward_kernels():
            yield
    finally:
        backends.mkldnn.enabled = onednn


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _tensors_of_call(values: Any) -> Iterator[Tensor]:
    """The same for arguments and results of operations of ATen, which nest in lists and tuples alone, and are many."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors_of_call(value)


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives each tensor that an operation returns its labels.

    Attributes:
        inputs: For each call the calls it depends on.
        unknown: The name of the operation of each call without a rule that units entered.
    """

    def __init__(self, evidence: Evidence, memory: Memory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs: dict[int, frozenset[int]] = {}
        self.unknown: dict[int, str] = {}
        self._effects: set[int] = set()
        self._evidence = evidence
        self._memory = memory

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if rule_for(func) is None:
            with self:  # under `torch.inference_mode`, composite operations get here as a whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._evidence.call += 1
        entering = list(_tensors_of_call((args, *kwargs.values())))
        known = {id(tensor): self._memory.labels(tensor) for tensor in entering}
        self.inputs[self._evidence.call] = frozenset().union(*map(self._memory.sources, entering))
        result = func(*args, **kwargs)
        call = Call(func, bound(func, args, kwargs), known, tuple(_tensors_of_call(result)), self._evidence)
        if not rearranges(func):
            for labels in known.values():
                if labels.is_state:
                    self._evidence.mark(USED, labels.factors)
        self._remember(call, self._labels(call))
        return result

    def needed_for(self, calls: set[int]) -> set[int]:
        """These calls, those with effects that can't be followed, and all that they depend on."""
        needed, ahead = set(), [*calls, *self._effects]
        while ahead:
            call = ahead.pop()
            if call not in needed:
                needed.add(call)
                ahead.extend(self.inputs[call])
        return needed

    def _labels(self, call: Call) -> list[Labels]:
        """Labels of the outputs."""
        rule = rule_for(call.operation)
        try:
            if rule is None:
                raise NoRuleError
            found = rule(call)
        except Exception:  # whatever a rule did not foresee costs symmetry, and no more
            found = []
            factors = [factor for labels in call.known.values() for factor in labels.factors]
            for factor in factors:
                self._evidence.fix(factor)
            if factors:
                self.unknown[self._evidence.call] = str(call.operation)
        missing = call.outputs[len(found) :]
        return [*found, *(Labels(tuple(output.shape)) for output in missing)]

    def _remember(self, call: Call, found: list[Labels]) -> None:
        written = {
            id(leaf): leaf
            for argument in call.operation._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for leaf in _tensors_of_call(call[argument.name])
            if torch.Tag.inplace_view not in call.operation.tags  # which leave the memory as it is
        }
        leaving = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(call.operation.tags)
        if leaving or not (call.outputs or written) or any(map(self._memory.is_older, written.values())):
            self._effects.add(self._evidence.call)  # a number of Python, or a tensor with views from before the pass
        for output, labels in zip(call.outputs, found, strict=False):
            if id(output) in written:
                self._memory.write(output, labels)
                del written[id(output)]
            else:
                self._memory.put(output, labels)
        for tensor in written.values():
            self._memory.spoil(tensor)
