"""Which layer's gradient norms are found in which way, and finding them so for one backward pass.

A plan maps the name of each layer that owns trainable parameters to a `Way`. It holds names only: one made on a model
serves any copy of it, and micro-batches of any size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_probes.functional.layer_capture import Call, Capture, Layout
from lightning_probes.functional.local_gradients import SampleDims, local_gradients, sample_dims
from lightning_probes.functional.norm_rules import rule_of
from lightning_probes.functional.sample_gradients import Contribution, Dense, at_least_single, squared_norm

Method: TypeAlias = Literal["rule", "vmap", "loop", "one_by_one"]


@dataclass(frozen=True)
class Way:
    """How the per-sample gradients of a layer's own parameters are found.

    Args:
        method: `rule`: from the layer's input and the gradient of its output. `vmap`, `loop`: by differentiating `unit`
            again for each sample. `one_by_one`: by one backward pass of the whole model a sample.
        unit: The layer itself, or the closest module around it that is called and in which alone its parameters are
            used. Empty for the root.
        layout: Where the samples are in the unit's output.
        dims: Where they are in its arguments, for each of its calls in turn (`vmap` and `loop`).
    """

    method: Method
    unit: str = ""
    layout: Layout = "first"
    dims: tuple[SampleDims, ...] = ()


Plan: TypeAlias = Mapping[str, Way]
Owners: TypeAlias = Mapping[str, Mapping[str, str]]
"""Layer to its own trainable parameters: name in the layer to name in `module.named_parameters()`, equal where tied."""


def owners_of(module: nn.Module) -> dict[str, dict[str, str]]:
    """The layers that own trainable parameters, see `Owners`."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    owners = {
        name: {
            local: names[parameter]
            for local, parameter in layer._parameters.items()
            if parameter is not None and parameter.requires_grad
        }
        for name, layer in module.named_modules()
    }
    return {name: parameters for name, parameters in owners.items() if parameters}


def layouts_of(plan: Plan) -> dict[str, Layout]:
    """The layers whose calls a plan needs, see `captured_calls`."""
    return {way.unit: way.layout for way in plan.values() if way.method != "one_by_one"}


def squared_norms(
    module: nn.Module,
    plan: Plan,
    owners: Owners,
    capture: Capture,
    logits: Tensor,
    cotangent: Tensor,
    failures: dict[Way, Exception] | None = None,
) -> dict[str, Tensor]:
    """Squared norms of the per-sample gradients of `(logits * cotangent).sum()`, shape `(samples,)` for each parameter.

    Args:
        module: The model.
        plan: The way of each layer in `owners`.
        owners: What to measure; a tied parameter with all its owners.
        capture: The calls of the forward pass that gave `logits`.
        logits: With their graph, samples in dim 0.
        cotangent: Like `logits`.
        failures: Where given, a way that raises is noted here and leaves its parameters out, instead of raising.
    """
    groups = _groups(plan, owners)
    singly = {name for way, group in groups.items() if way.method == "one_by_one" for name in group.values()}
    used: dict[str, list[tuple[Way, dict[str, str]]]] = defaultdict(list)
    for way, group in groups.items():
        if wanted := {local: name for local, name in group.items() if name not in singly}:
            used[way.unit].append((way, wanted))
    uses = Counter(name for call in capture.calls for _, wanted in used[call.name] for name in wanted.values())
    positions = {call: at for name in used for at, call in enumerate(c for c in capture.calls if c.name == name)}
    norms: dict[str, Tensor] = {}
    contributions: dict[str, list[Contribution]] = defaultdict(list)
    later: list[tuple[Call, tuple[Tensor | None, ...], Way, dict[str, str]]] = []

    def visit(call: Call, grads: tuple[Tensor | None, ...]) -> None:
        for way, wanted in used[call.name]:
            if way.method == "rule" and not isinstance(module.get_submodule(way.unit), nn.MultiheadAttention):
                find(call, grads, way, wanted)
            else:  # differentiates, which is not to be nested in the backward pass under way
                later.append((call, grads, way, wanted))

    def find(call: Call, grads: tuple[Tensor | None, ...], way: Way, wanted: dict[str, str]) -> None:
        alone = {local for local, name in wanted.items() if uses[name] == 1}
        try:
            found = _contributions(module, way, wanted, alone, call, positions[call], grads, len(logits))
            for local, name in wanted.items():
                if local in alone:
                    norms[name] = found[local].squared_norm()
                else:
                    contributions[name].append(found[local])
        except Exception as error:
            if failures is None:
                raise
            failures[way] = error

    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        capture.backward(logits, cotangent, visit)
        for waiting in later:
            find(*waiting)
        norms.update({name: squared_norm(terms) for name, terms in contributions.items()})
    norms.update(squared_norms_one_by_one(module, singly, logits, cotangent, range(len(logits))))
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # mps has no double precision
    zeros = torch.zeros(len(logits), dtype=wide, device=logits.device)
    names = {name for group in groups.values() for name in group.values()}
    return {name: norms[name].to(wide) if name in norms else zeros for name in names}


def squared_norms_one_by_one(
    module: nn.Module, names: Iterable[str], logits: Tensor, cotangent: Tensor, samples: Sequence[int]
) -> dict[str, Tensor]:
    """The same for some parameters and samples, by one backward pass a sample.

    Returns:
        Parameter to squared norms, shape `(len(samples),)`. Parameters that take no part in the graph are left out, and
        cost nothing.
    """
    norms: dict[str, list[Tensor]] = {name: [] for name in names}
    for sample in samples:
        if not norms:
            break
        one = torch.zeros_like(cotangent)
        one[sample] = cotangent[sample]
        parameters = [module.get_parameter(name) for name in norms]
        grads = torch.autograd.grad(logits, parameters, one, retain_graph=True, allow_unused=True)
        for name, grad in zip([*norms], grads, strict=True):
            if grad is None:
                del norms[name]
            else:
                norms[name].append(torch.linalg.vector_norm(at_least_single(grad)) ** 2)
    return {name: torch.stack(values) for name, values in norms.items()}


def _groups(plan: Plan, owners: Owners) -> dict[Way, dict[str, str]]:
    """Parameters by way: name in the way's unit to name in the model."""
    groups: dict[Way, dict[str, str]] = defaultdict(dict)
    for owner, parameters in owners.items():
        way = plan[owner]
        path = owner.removeprefix(way.unit).removeprefix(".")
        groups[way].update({f"{path}.{local}".removeprefix("."): name for local, name in parameters.items()})
    return groups


def _contributions(
    module: nn.Module,
    way: Way,
    wanted: Iterable[str],
    alone: Set[str],
    call: Call,
    position: int,
    grads: tuple[Tensor | None, ...],
    samples: int,
) -> Mapping[str, Contribution]:
    """What one call adds to the gradients of each wanted parameter; of those used in it `alone`, the norm will do."""
    layer = module.get_submodule(way.unit)
    if way.method == "rule":
        rule = rule_of(layer)
        if rule is None:
            raise ValueError(f"there is no rule for layer {way.unit!r} of type {type(layer).__name__}")
        return rule(layer, call, grads, way.layout, samples)
    dims = way.dims[position] if position < len(way.dims) else sample_dims(layer, call, way.layout)
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    for part in local_gradients(layer, [*wanted], call, grads, way.layout, dims, samples, way.method == "vmap"):
        for local, values in part.items():
            values = at_least_single(values)
            if local in alone:  # kept as a gradient with one element, of the same norm
                values = torch.linalg.vector_norm(values.flatten(1), dim=1, keepdim=True)
            pieces[local].append(values)
    return {local: Dense(torch.cat(values)) for local, values in pieces.items()}
