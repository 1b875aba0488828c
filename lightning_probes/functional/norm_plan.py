"""Which layer's gradient norms are found in which way, and finding them so for one backward pass.

A plan maps the name of each layer that owns trainable parameters to a `Way`. It holds names only: one made on a model
serves any copy of it, and micro-batches of any size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_probes.functional.layer_capture import Call, Layout, output_gradients
from lightning_probes.functional.local_gradients import SampleDims, local_gradients, sample_dims
from lightning_probes.functional.norm_rules import rule_of
from lightning_probes.functional.sample_gradients import Contribution, Dense, squared_norm

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
    calls: Sequence[Call],
    logits: Tensor,
    cotangent: Tensor,
    failures: dict[Way, Exception] | None = None,
) -> dict[str, Tensor]:
    """Squared norms of the per-sample gradients of `(logits * cotangent).sum()`, shape `(samples,)` for each parameter.

    Args:
        module: The model.
        plan: The way of each layer in `owners`.
        owners: What to measure; a tied parameter with all its owners.
        calls: The calls captured in the forward pass that gave `logits`.
        logits: With their graph, samples in dim 0.
        cotangent: Like `logits`.
        failures: Where given, a way that raises is noted here and leaves its parameters out, instead of raising.
    """
    samples = len(logits)
    groups = _groups(plan, owners)
    singly = {name for way, group in groups.items() if way.method == "one_by_one" for name in group.values()}
    units = {way.unit for way, group in groups.items() if not singly.issuperset(group.values())}
    calls = [call for call in calls if call.name in units]
    received: dict[str, list[tuple[Call, tuple[Tensor | None, ...]]]] = defaultdict(list)
    for call, grads in zip(calls, output_gradients(logits, calls, cotangent), strict=True):
        received[call.name].append((call, grads))

    number = Counter(name for way, group in groups.items() for name in group.values() for _ in received[way.unit])
    uses: dict[str, list[Contribution]] = {name: [] for group in groups.values() for name in group.values()}
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        for way, group in groups.items():
            wanted = {local: name for local, name in group.items() if name not in singly}
            try:
                for at, (call, grads) in enumerate(received[way.unit] if wanted else []):
                    if all(grad is None for grad in grads):
                        continue
                    layer = module.get_submodule(way.unit)
                    if way.method == "rule":
                        found = _by_rule(layer, call, grads, way.layout, samples)
                    else:
                        dims = way.dims[at] if at < len(way.dims) else sample_dims(layer, call, way.layout)
                        alone = {local for local, name in wanted.items() if number[name] == 1}
                        parts = local_gradients(
                            layer, list(wanted), call, grads, way.layout, dims, samples, way.method == "vmap"
                        )
                        found = _joined(parts, alone)
                    for local, name in wanted.items():
                        uses[name].append(found[local])
            except Exception as error:
                if failures is None:
                    raise
                failures[way] = error
        norms = {name: squared_norm(found) for name, found in uses.items() if found}
    norms.update(squared_norms_one_by_one(module, singly, logits, cotangent, range(samples)))
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # mps has no double precision
    zeros = torch.zeros(samples, dtype=wide, device=logits.device)
    return {name: norms[name].to(wide) if name in norms else zeros for name in uses}


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
                norms[name].append(torch.linalg.vector_norm(_at_least_single(grad)) ** 2)
    return {name: torch.stack(values) for name, values in norms.items()}


def _groups(plan: Plan, owners: Owners) -> dict[Way, dict[str, str]]:
    """Parameters by way: name in the way's unit to name in the model."""
    groups: dict[Way, dict[str, str]] = defaultdict(dict)
    for owner, parameters in owners.items():
        way = plan[owner]
        path = owner.removeprefix(way.unit).removeprefix(".")
        groups[way].update({f"{path}.{local}".removeprefix("."): name for local, name in parameters.items()})
    return groups


def _by_rule(
    layer: nn.Module, call: Call, grads: Sequence[Tensor | None], layout: Layout, samples: int
) -> dict[str, Contribution]:
    rule = rule_of(layer)
    if rule is None or grads[0] is None:
        raise ValueError(f"there is no rule for layer {call.name!r} of type {type(layer).__name__}")
    inputs = call.args[0] if call.args else next(iter(call.kwargs.values()))
    return rule(layer, _at_least_single(inputs), _at_least_single(grads[0]), layout, samples)


def _joined(parts: Iterable[dict[str, Tensor]], alone: set[str]) -> dict[str, Contribution]:
    """Slices of gradients put together; of a parameter used once, only the norm is kept, for memory."""
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    for part in parts:
        for local, grads in part.items():
            grads = _at_least_single(grads)
            pieces[local].append(
                torch.linalg.vector_norm(grads.flatten(1), dim=1, keepdim=True) if local in alone else grads
            )
    return {local: Dense(torch.cat(slices)) for local, slices in pieces.items()}


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
