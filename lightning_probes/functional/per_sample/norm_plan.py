"""The plan of how each layer's gradient norms are computed, and its execution for one backward pass.

A plan maps the name of each layer that owns trainable parameters to a `Way`. It holds only names, so it is valid for
any copy of the model and for micro-batches of any size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_probes.functional.inner_product import norm
from lightning_probes.functional.layer_capture import Call, Capture, Layout, captured_calls
from lightning_probes.functional.per_sample.attention_rule import projection_edges
from lightning_probes.functional.per_sample.local_gradients import SampleDims, local_gradients, sample_dims
from lightning_probes.functional.per_sample.norm_rules import Rule, rule_of
from lightning_probes.functional.per_sample.parameter_expansion import expanded_parameters
from lightning_probes.functional.per_sample.sample_gradients import Contribution, Dense, squared_norm
from lightning_probes.functional.wide import at_least_single, widest

Method: TypeAlias = Literal["rule", "expand", "vmap", "loop", "one_by_one"]


@dataclass(frozen=True)
class Way:
    """How the per-sample gradients of a layer's own parameters are computed.

    Args:
        method: `rule`: from the layer's input and the gradient of its output. `expand`: from a copy of the parameter
            for each sample. `vmap`, `loop`: by differentiating `unit` again for each sample. `one_by_one`: by one
            backward pass of the whole model per sample.
        unit: The layer itself, or the closest module around it that is called and contains all uses of the layer's
            parameters. Empty for the root.
        layout: Layout of the samples in the unit's output.
        dims: Dims of the samples in the unit's arguments, one entry for each call (`vmap` and `loop`).
    """

    method: Method
    unit: str = ""
    layout: Layout = "first"
    dims: tuple[SampleDims, ...] = ()


Plan: TypeAlias = Mapping[str, Way]
Owners: TypeAlias = Mapping[str, Mapping[str, str]]
"""Maps each layer to its own trainable parameters: name in the layer -> name in `module.named_parameters()`.

Tied parameters have the same name in the model.
"""


def owners_of(module: nn.Module) -> dict[str, dict[str, str]]:
    """The layers that own trainable parameters; see `Owners`."""
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


class PlannedNorms:
    """Squared norms of per-sample gradients, computed by a plan; reusable for any number of micro-batches.

    Args:
        module: The model.
        plan: The way of each layer in `owners`.
        owners: The parameters to measure; a tied parameter with all its owners.

    Attributes:
        module: As given.
        names: The parameters measured, each once.
    """

    def __init__(self, module: nn.Module, plan: Plan, owners: Owners) -> None:
        self.module = module
        self.names = list(dict.fromkeys(name for parameters in owners.values() for name in parameters.values()))
        self._singly = {
            name for owner, names in owners.items() if plan[owner].method == "one_by_one" for name in names.values()
        }
        self._tasks = _tasks(module, plan, owners, self._singly)
        self._layouts = {way.unit: way.layout for way in plan.values() if way.method not in ("expand", "one_by_one")}
        self._expanded = {owner: [*names] for owner, names in owners.items() if plan[owner].method == "expand"}

    @contextmanager
    def captured(self) -> Iterator[Capture]:
        """Capture what the plan needs from the forward passes inside the context."""
        with (
            captured_calls(self.module, self._layouts, projection_edges) as capture,
            expanded_parameters(self.module, self._expanded, capture),
        ):
            yield capture

    def __call__(
        self, capture: Capture, logits: Tensor, cotangent: Tensor, failures: dict[Way, Exception] | None = None
    ) -> Tensor:
        """Squared norms for `(logits * cotangent).sum()`, shape `(parameters, samples)`, in the device's widest dtype.

        Args:
            capture: The calls of the forward pass that gave `logits`.
            logits: With their graph, samples in dim 0.
            cotangent: Like `logits`.
            failures: If given, the exception of a way that fails is stored here and its parameters are left out;
                otherwise it is raised.
        """
        tasks = self._tasks
        uses = Counter(name for call in capture.calls for task in tasks[call.kind] for name in task.wanted.values())
        norms: dict[str, Tensor] = {}
        terms: dict[str, list[Contribution]] = defaultdict(list)
        later: list[tuple[_Task, Call, tuple[Tensor | None, ...]]] = []

        def run(task: _Task, call: Call, grads: tuple[Tensor | None, ...]) -> None:
            alone = {local for local, name in task.wanted.items() if uses[name] == 1}
            try:
                for local, contribution in _contributions(task, alone, call, grads, len(logits)).items():
                    if local in alone:  # compute the norm now, while the gradient is in cache
                        norms[task.wanted[local]] = contribution.squared_norm()
                    elif local in task.wanted:
                        terms[task.wanted[local]].append(contribution)
            except Exception as error:
                if failures is not None:
                    failures[task.way] = error
                elif isinstance(error, ValueError):
                    raise ValueError(
                        f"layer {task.way.unit!r} was called in another way than on the first micro-batch ({error}): "
                        "pass predict_fn= that runs the model in the same way on every batch"
                    ) from error
                else:
                    raise

        def visit(call: Call, grads: tuple[Tensor | None, ...]) -> None:
            for task in tasks[call.kind]:
                if task.differentiates:  # must not be nested in the running backward pass
                    later.append((task, call, grads))
                else:
                    run(task, call, grads)

        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            capture.backward(logits, cotangent, visit)
            for waiting in later:
                run(*waiting)
            norms.update({name: squared_norm(contributions) for name, contributions in terms.items()})
            norms.update(squared_norms_one_by_one(self.module, self._singly, logits, cotangent, range(len(logits))))
        zeros = torch.zeros(len(logits), device=logits.device)
        return torch.stack([norms.get(name, zeros) for name in self.names]).to(widest(logits.device))


def squared_norms_one_by_one(
    module: nn.Module, names: Iterable[str], logits: Tensor, cotangent: Tensor, samples: Sequence[int]
) -> dict[str, Tensor]:
    """Squared norms for some parameters and samples, by one backward pass per sample.

    Returns:
        Maps parameters to squared norms, shape `(len(samples),)`. Parameters outside the graph are left out and cost
        nothing.
    """
    norms: dict[str, list[Tensor]] = {name: [] for name in names}
    for sample in samples:
        if not norms:
            break
        one = torch.zeros_like(cotangent)
        one[sample] = cotangent[sample]
        parameters = [module.get_parameter(name) for name in norms]
        with torch.autocast(logits.device.type, enabled=False):
            grads = torch.autograd.grad(logits, parameters, one, retain_graph=True, allow_unused=True)
            for name, grad in zip([*norms], grads, strict=True):
                if grad is None:
                    del norms[name]
                else:
                    values = grad.coalesce().values() if grad.is_sparse else grad
                    norms[name].append(norm(at_least_single(values).flatten()) ** 2)
    return {name: torch.stack(values) for name, values in norms.items()}


@dataclass(frozen=True)
class _Task:
    """The gradients to compute in each call of a layer: `wanted` maps names in the layer to names in the model."""

    way: Way
    layer: nn.Module
    wanted: dict[str, str]
    rule: Rule | None

    @property
    def differentiates(self) -> bool:
        return self.way.method in ("vmap", "loop") or isinstance(self.layer, (nn.MultiheadAttention, nn.RNNBase))


def _tasks(module: nn.Module, plan: Plan, owners: Owners, left_out: Set[str]) -> dict[tuple[str, bool], list[_Task]]:
    """Tasks by kind of call."""
    wanted: dict[Way, dict[str, str]] = defaultdict(dict)
    for owner, parameters in owners.items():
        path = owner.removeprefix(plan[owner].unit).removeprefix(".")
        locals_ = {f"{path}.{local}".removeprefix("."): name for local, name in parameters.items()}
        wanted[plan[owner]].update({local: name for local, name in locals_.items() if name not in left_out})
    tasks: dict[tuple[str, bool], list[_Task]] = defaultdict(list)
    for way, names in wanted.items():
        if names:
            layer = module.get_submodule(way.unit)
            tasks[way.unit, way.method == "expand"].append(_Task(way, layer, names, rule_of(layer)))
    return tasks


def _contributions(
    task: _Task, alone: Set[str], call: Call, grads: tuple[Tensor | None, ...], samples: int
) -> Mapping[str, Contribution]:
    """What one call adds to the gradients of parameters; for those used only here (`alone`) the norm is enough."""
    way, layer = task.way, task.layer
    if way.method == "rule":
        if task.rule is None:
            raise ValueError(f"there is no rule for {type(layer).__name__}")
        return task.rule(layer, call, grads, way.layout, samples)
    if way.method == "expand":
        return {
            local: Dense(at_least_single(grad).reshape(samples, *layer.get_parameter(local).shape))
            for local, grad in zip(call.parameters, grads, strict=True)
            if grad is not None
        }
    dims = way.dims[call.position] if call.position < len(way.dims) else sample_dims(layer, call, way.layout)
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    for part in local_gradients(layer, [*task.wanted], call, grads, way.layout, dims, samples, way.method == "vmap"):
        for local, values in part.items():
            values = at_least_single(values)
            if local in alone:  # stored as a gradient with one element and the same norm
                values = norm(values.flatten(1)).unsqueeze(1)
            pieces[local].append(values)
    return {local: Dense(torch.cat(values)) for local, values in pieces.items()}
