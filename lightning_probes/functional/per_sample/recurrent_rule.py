"""Per-sample gradients of `nn.RNN`, `nn.LSTM` and `nn.GRU`, whose fused kernels hide their inner steps.

The layer runs once more, step by step for the whole batch, and is differentiated with respect to the products with its
weights at each step. Each weight is then treated as that of a linear layer with one position per step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_probes.functional.layer_capture import Call
from lightning_probes.functional.per_sample.sample_gradients import Contribution, Dense, Outer
from lightning_probes.functional.wide import at_least_single

State: TypeAlias = tuple[Tensor, ...]
"""Hidden state, and for an LSTM the cell state, each of shape `(samples, hidden)`."""


def recurrent_rule(
    layer: nn.RNNBase, call: Call, grads: tuple[Tensor | None, ...], samples: int
) -> dict[str, Contribution]:
    """Contributions of all weights and biases, by parameter name in the layer.

    Args:
        layer: Without projections (`proj_size`) and without active dropout.
        call: A call of the layer with batched inputs, not a `PackedSequence`.
        grads: Gradients of its differentiable outputs.
        samples: Number of samples in the batch.

    Raises:
        ValueError: If the call has other inputs.
    """
    given = inspect.signature(layer.forward).bind(*call.args, **call.kwargs).arguments
    sequence, states = given["input"], [state for state in tree_leaves(given.get("hx")) if state is not None]
    if not isinstance(sequence, Tensor) or sequence.ndim != 3:
        raise ValueError("the rule needs a batch of sequences of one length")
    if layer.batch_first:
        sequence = sequence.transpose(0, 1)
    sequence = at_least_single(sequence.detach())
    if sequence.shape[1] != samples:
        raise ValueError(f"expected {samples} samples, found {sequence.shape[1]}")
    directions = 2 if layer.bidirectional else 1
    if not states:
        zeros = sequence.new_zeros(layer.num_layers * directions, samples, layer.hidden_size)
        states = [zeros, zeros] if isinstance(layer, nn.LSTM) else [zeros]
    states = [at_least_single(state.detach()) for state in states]

    runs: list[_Run] = []
    with torch.enable_grad():
        for number in range(layer.num_layers):
            both = [_Run(layer, number, reverse, sequence, states) for reverse in range(directions)]
            sequence = torch.cat([torch.stack(run.hidden) for run in both], dim=2)
            runs += both
        output = sequence.transpose(0, 1) if layer.batch_first else sequence
        outputs = [output, *(torch.stack(parts) for parts in zip(*(run.last for run in runs), strict=True))]
        reached = [(outputs[i], grad) for i, grad in zip(call.outputs, grads, strict=True) if grad is not None]
        ends, cotangents = zip(*reached, strict=True)
        wanted = [tensor for run in runs for tensor in (run.from_input, *run.from_state)]
        found = iter(
            torch.autograd.grad(ends, wanted, [at_least_single(grad) for grad in cotangents], materialize_grads=True)
        )
    contributions: dict[str, Contribution] = {}
    for run in runs:
        contributions |= run.contributions(layer, next(found), torch.stack([next(found) for _ in run.from_state]))
    return contributions


class _Run:
    """A second run of one layer and direction: inputs and outputs of its two linear maps."""

    def __init__(
        self, layer: nn.RNNBase, number: int, reverse: int, sequence: Tensor, states: Sequence[Tensor]
    ) -> None:
        self.suffix = f"_l{number}" + ("_reverse" if reverse else "")
        self.inputs, self.before, self.from_state = sequence.detach(), [], []
        self.from_input = self._linear(layer, "ih", sequence)
        row = number * (2 if layer.bidirectional else 1) + reverse
        self.last: State = tuple(state[row] for state in states)
        step, hidden = _STEPS[layer.mode], []
        parts = self.from_input.unbind(0)
        for part in reversed(parts) if reverse else parts:
            self.before.append(self.last[0].detach())
            self.from_state.append(self._linear(layer, "hh", self.last[0]))
            self.last = step(part, self.from_state[-1], self.last)
            hidden.append(self.last[0])
        order = slice(None, None, -1 if reverse else 1)
        self.hidden = hidden[order]

    def contributions(self, layer: nn.RNNBase, from_input: Tensor, from_state: Tensor) -> dict[str, Contribution]:
        """Contributions of weights and biases, from the gradients of the maps' outputs, `(steps, samples, gates)`."""
        found: dict[str, Contribution] = {}
        maps = ("ih", from_input, self.inputs), ("hh", from_state, torch.stack(self.before))
        for kind, grad, inputs in maps:
            weight = getattr(layer, f"weight_{kind}{self.suffix}")
            grad = grad.transpose(0, 1)
            found[f"weight_{kind}{self.suffix}"] = Outer(grad, inputs.transpose(0, 1), weight.shape)
            found[f"bias_{kind}{self.suffix}"] = Dense(grad.sum(1))
        return found

    def _linear(self, layer: nn.RNNBase, kind: str, x: Tensor) -> Tensor:
        names = [f"weight_{kind}{self.suffix}", *([f"bias_{kind}{self.suffix}"] if layer.bias else [])]
        given = F.linear(x, *(at_least_single(getattr(layer, name).detach()) for name in names))
        return given if given.requires_grad else given.requires_grad_()


def _lstm(from_input: Tensor, from_state: Tensor, state: State) -> State:
    enter, forget, candidate, leave = (from_input + from_state).chunk(4, 1)
    cell = forget.sigmoid() * state[1] + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru(from_input: Tensor, from_state: Tensor, state: State) -> State:
    reset, update, candidate = from_input.chunk(3, 1)
    reset_state, update_state, candidate_state = from_state.chunk(3, 1)
    candidate = (candidate + (reset + reset_state).sigmoid() * candidate_state).tanh()
    return (torch.lerp(candidate, state[0], (update + update_state).sigmoid()),)


_STEPS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda from_input, from_state, state: ((from_input + from_state).tanh(),),
    "RNN_RELU": lambda from_input, from_state, state: ((from_input + from_state).relu(),),
}
