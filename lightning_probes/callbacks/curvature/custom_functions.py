"""Checks of the custom `autograd.Function`s in the graph of a loss, one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from lightning_probes.functional.curvature.backward_pass import is_backward_of_another, is_backward_unseen
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.seeding import seed_generators
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.processes import is_out_of_memory
from lightning_probes.probing.view import ModelView

# A Python class, or autograd's name of a C++ node.
CustomFunction: TypeAlias = "type[torch.autograd.Function] | str"
Calls: TypeAlias = dict[Any, list[tuple[Any, ...]]]

_MOST_CALLS = 32  # calls of one function that are checked; a recurrent one may have thousands


def custom_functions(value: Tensor) -> Iterator[CustomFunction]:
    """The functions in the graph of a tensor that are not PyTorch's own."""
    waiting, seen = [value.grad_fn], set[object]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            kind: Any = type(node)._forward_cls
            if not kind.__module__.startswith("torch.nn."):
                yield kind
        elif "CppNode" in node.name():
            yield node.name()


def names_of(functions: Iterable[CustomFunction]) -> list[str]:
    """The names of functions, each once, in alphabetical order."""
    return sorted({each if isinstance(each, str) else each.__name__ for each in functions})


@dataclass(frozen=True)
class Judgement:
    """Problems of the custom functions in the graph of a loss.

    Attributes:
        unseen: Functions whose backward pass autograd can't differentiate, or that can't be run alone, such as those
            written in C++.
        of_others: Other functions whose backward pass is not the derivative of their forward pass (straight-through
            estimators, gradients that are reversed or scaled).
    """

    unseen: Sequence[CustomFunction] = ()
    of_others: Sequence[CustomFunction] = ()


def judged(
    view: ModelView, params: Mapping[str, Tensor], batch: MicroBatch, functions: Sequence[CustomFunction]
) -> Judgement:
    """Check each function on its recorded inputs while the module has `params`, which the function may use as well.

    Args:
        view: The model.
        params: Parameters and buffers in float64.
        batch: A micro-batch in float64.
        functions: The functions in the graph of the loss.
    """
    found: dict[CustomFunction, bool | None] = {}

    def loss(module: nn.Module, content: Any) -> Tensor:
        kinds = [each for each in functions if not isinstance(each, str)]
        with _recorded(kinds) as calls:
            value = view.objective.loss(module, content, batch.key)
        found.update({kind: _is_own(kind, calls[kind], view, batch) for kind in kinds})
        return value

    replace(view, objective=Objective(loss)).loss(params, batch)
    return Judgement(
        [each for each in functions if found.get(each) is None],
        [each for each in functions if found.get(each) is False],
    )


@contextmanager
def _recorded(kinds: Iterable[Any]) -> Iterator[Calls]:
    """Record copies of each function's arguments inside the block. The function may write to the originals."""
    calls: Calls = defaultdict(list)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(_recording(kind, calls[kind]))
        yield calls


@contextmanager
def _recording(kind: Any, calls: list[tuple[Any, ...]]) -> Iterator[None]:
    forward, own = kind.forward, vars(kind).get("forward")
    has_context = kind.setup_context is torch.autograd.Function.setup_context  # `forward` then gets it first

    @wraps(forward)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        if len(calls) < _MOST_CALLS and not kwargs:
            calls.append(tuple(_copied(arg) for arg in (args[1:] if has_context else args)))
        return forward(*args, **kwargs)

    kind.forward = staticmethod(recorded)
    try:
        yield
    finally:
        if own is None:
            del kind.forward
        else:
            kind.forward = own


def _copied(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().clone().requires_grad_(argument.requires_grad)


def _is_own(kind: Any, calls: Sequence[tuple[Any, ...]], view: ModelView, batch: MicroBatch) -> bool | None:
    """Whether each backward pass is the derivative of its forward pass; None if autograd can't differentiate it."""
    generator, own = view.generator(2), True
    differentiable = [args for args in calls if any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)]
    try:
        for args in differentiable:
            operation, inputs = _operation(kind, args, (view.seed, batch.key))
            if is_backward_unseen(operation, inputs, generator):
                return None
            own = own and not is_backward_of_another(operation, inputs, generator)
    except Exception as error:  # the function works only inside the model
        if is_out_of_memory(error):
            raise
        return None
    return own if differentiable else None


def _operation(kind: Any, args: Sequence[Any], seed: tuple[int, ...]) -> tuple[Any, dict[str, Tensor]]:
    """A call as a function of its differentiable tensors, and these tensors."""
    inputs = {str(i): arg.detach() for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.requires_grad}

    def operation(tensors: Mapping[str, Tensor]) -> list[Tensor]:
        seed_generators(*seed)
        outputs = tree_leaves(kind.apply(*(tensors.get(str(place), arg) for place, arg in enumerate(args))))
        return [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]

    return operation, inputs
