"""Squared gradient norm of every sample, for every parameter, from one forward and one backward pass.

Several methods give the same numbers: a rule for the layer's type, `torch.func.vmap` over the layer alone, or one
sample after the other. `choose_methods` finds once which method works for a layer, by comparing with autograd.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_probes.functional.layer_capture import Call, Layout, captured_calls
from lightning_probes.functional.per_sample.local_gradients import attributes_kept, sample_dims
from lightning_probes.functional.per_sample.norm_plan import (
    Method,
    Owners,
    Plan,
    PlannedNorms,
    Way,
    owners_of,
    squared_norms_one_by_one,
)
from lightning_probes.functional.per_sample.norm_rules import rule_of
from lightning_probes.functional.plain import plain

__all__ = [
    "Method", "Plan", "PlannedNorms", "Way", "choose_methods", "owners_of", "per_sample_squared_grad_norms",
    "squared_norms",
]  # fmt: skip

_log = logging.getLogger(__name__)
_METHODS: tuple[Method, ...] = ("rule", "expand", "vmap", "loop")


def per_sample_squared_grad_norms(
    module: nn.Module,
    forward: Callable[[], Tensor],
    cotangents: Callable[[Tensor], Iterable[Tensor]],
    methods: Plan | Method | None = None,
) -> dict[str, Tensor]:
    r"""Squared norm of J_n^T v_n for each sample n; J_n is the Jacobian of its logits with respect to one parameter.

    With v_n = d log p(y_n | x_n) / d logits this is the squared norm of the gradient of each sample's log-likelihood.

    The module must be in eval mode and process samples independently. It has forward hooks during the call and does not
    change otherwise; `.grad` is not touched.

    Args:
        module: The model. Its parameters that require grad are measured.
        forward: Runs the model once on a micro-batch and returns the logits, samples in dim 0.
        cotangents: Takes the detached logits and returns tensors v of the same shape.
        methods: The plan from `choose_methods` for this model. None makes a new plan, which is expensive: make it once.
            A new plan is also made if a layer is missing, because it was frozen before. The name of a method uses only
            this method, and `one_by_one` for layers where it fails.

    Returns:
        Maps names of `module.named_parameters()` to squared norms in double precision, shape `(cotangents, samples)`; 0
        for parameters that are not used. A tied parameter appears once; its uses are summed before taking the norm.

    Raises:
        ValueError: If the logits don't depend on a trainable parameter, or a BatchNorm layer uses batch statistics.

    Cost: one forward pass, about one backward pass per cotangent, and the passes of the plan's `one_by_one` layers.
    Memory: activations and their gradients of one micro-batch.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> per_sample_squared_grad_norms(layer, lambda: layer(x), lambda logits: [torch.ones_like(logits)])
        {'weight': tensor([[25.,  1.]], dtype=torch.float64), 'bias': tensor([[1., 1.]], dtype=torch.float64)}
    """
    owners = owners_of(module)
    if methods is None or isinstance(methods, str):
        methods = choose_methods(module, forward, _METHODS if methods is None else (methods,))
    elif not owners.keys() <= methods.keys():  # a layer was unfrozen since
        methods = choose_methods(module, forward)
    planned = PlannedNorms(module, methods, owners)
    return dict(zip(planned.names, squared_norms(planned, forward, cotangents).unbind(1), strict=True))


def squared_norms(
    planned: PlannedNorms, forward: Callable[[], Tensor], cotangents: Callable[[Tensor], Iterable[Tensor]]
) -> Tensor:
    """Like `per_sample_squared_grad_norms`, with a prepared plan: for many micro-batches of one model.

    Returns:
        Shape `(cotangents, parameters, samples)`; the parameters are `planned.names`.
    """
    with _as_measured(planned.module):
        with planned.captured() as capture:
            logits = _checked(forward())
        return torch.stack([planned(capture, logits, cotangent) for cotangent in cotangents(logits.detach())])


def choose_methods(
    module: nn.Module, forward: Callable[[], Tensor], allowed: Sequence[Method] = _METHODS
) -> dict[str, Way]:
    """Find for each layer the cheapest method for its per-sample gradient norms that agrees with autograd.

    During the call the parameters are replaced by perturbed copies, because zeros, frequent at initialisation, could
    hide errors. The norms of the first and the last sample are compared for a random cotangent. If no method is right
    for a layer, it gets one backward pass per sample.

    Args:
        module: The model, as for `per_sample_squared_grad_norms`.
        forward: As for `per_sample_squared_grad_norms`; runs a few times on the same micro-batch.
        allowed: Methods to try, the cheapest first. `one_by_one` is always the last resort.

    Returns:
        The plan. It holds only names and is valid for any copy of the model and micro-batches of any size.

    Raises:
        ValueError: As `per_sample_squared_grad_norms`; and if two passes differ (dropout, an unseeded generator).

    Cost: about five forward and backward passes, and a copy of the trainable parameters during the call.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.PReLU())
        >>> {name: way.method for name, way in choose_methods(model, lambda: model(torch.ones(5, 3))).items()}
        {'0': 'rule', '1': 'vmap'}
    """
    owners = owners_of(module)
    with _as_measured(module), _perturbed(module, forward) as moved_forward, attributes_kept(module):
        with captured_calls(module, {name: None for name, _ in module.named_modules()}) as capture:
            logits = _checked(moved_forward())
        cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        ends = sorted({0, len(logits) - 1})
        names = {name for parameters in owners.values() for name in parameters.values()}
        expected = squared_norms_one_by_one(module, names, logits, cotangent, ends)
        shapes = {call.name: call.shapes[0] for call in reversed(capture.calls)}
        candidates = {
            name: _candidates(module, name, shapes, len(logits), allowed)
            if any(parameter in expected for parameter in parameters.values())
            else [Way("one_by_one")]  # not used in this pass, so it costs nothing
            for name, parameters in owners.items()
        }
        del capture, logits
        while True:
            plan = {name: ways[0] for name, ways in candidates.items()}
            wrong, calls = _disagreeing(module, moved_forward, owners, plan, cotangent, expected, ends)
            for name in wrong:
                _log.debug("%s: %s does not hold", name or "model", candidates[name].pop(0))
            if not wrong:
                break
            if not all(candidates.values()):
                raise ValueError(
                    "two passes of the model gave different gradients: pass predict_fn= without the operation that is "
                    "random or nondeterministic"
                )
    for name, way in plan.items():
        layer = module.get_submodule(way.unit)
        dims = [sample_dims(layer, call, way.layout) for call in calls if call.kind == (way.unit, False)]
        plan[name] = replace(way, dims=tuple(dims)) if way.method in ("vmap", "loop") else way
        _log.debug("%s (%s): %s", name or "model", type(module.get_submodule(name)).__name__, way)
    return plan


def _disagreeing(
    module: nn.Module,
    forward: Callable[[], Tensor],
    owners: Owners,
    plan: Plan,
    cotangent: Tensor,
    expected: Mapping[str, Tensor],
    samples: list[int],
) -> tuple[list[str], list[Call]]:
    """Layers for which a plan fails or gives wrong norms for some samples; and the captured calls."""
    repeated = [name for name, way in plan.items() if way.method == "expand" or way.layout in ("expanded", "prepended")]
    planned = PlannedNorms(module, plan, owners)
    try:
        with planned.captured() as capture:
            logits = forward()
        fits = logits.shape == cotangent.shape
    except Exception:
        if not repeated:
            raise
        fits = False
    if not fits:
        # Something repeated over samples does not fit the code that uses it. Try each one alone to find out which.
        without = {**plan, **dict.fromkeys(repeated, Way("one_by_one"))}
        unfit = [
            name for name in repeated if not _runs(module, forward, owners, {**without, name: plan[name]}, cotangent)
        ]
        return unfit or repeated, []
    failures: dict[Way, Exception] = {}
    norms = dict(zip(planned.names, planned(capture, logits, cotangent, failures), strict=True))
    total = torch.stack(list(expected.values())).nan_to_num(0, 0, 0).sum(0)
    relative = 1e-3 if logits.device.type == "cpu" else 1e-2  # GPUs may round products to ten bits
    for parameter in module.parameters():
        if parameter.is_floating_point():
            relative = max(relative, 8 * torch.finfo(parameter.dtype).eps)
    wrong = set()
    for name, found in norms.items():
        want = expected.get(name, torch.zeros_like(total)).to(found)
        error = (found[samples] - want).abs()
        same = (error <= relative * want + 1e-8 * total) | ~want.isfinite()  # can't be judged if not finite
        if not same.all():
            wrong.add(name)
    disagreeing = [owner for owner, names in owners.items() if plan[owner] in failures or wrong & {*names.values()}]
    return disagreeing, capture.calls


def _runs(module: nn.Module, forward: Callable[[], Tensor], owners: Owners, plan: Plan, cotangent: Tensor) -> bool:
    try:
        with PlannedNorms(module, plan, owners).captured():
            return forward().shape == cotangent.shape
    except Exception:
        return False


def _candidates(
    module: nn.Module, owner: str, shapes: Mapping[str, torch.Size], samples: int, allowed: Sequence[Method]
) -> list[Way]:
    """Ways to try for a layer, given the shape of the first output of each called layer."""
    path = owner.split(".") if owner else []
    around = [".".join(path[:end]) for end in range(len(path), -1, -1)]
    units = [name for name in around if name in shapes and "parametrizations" not in name.split(".")]
    ways = []
    if units:
        unit = module.get_submodule(units[0])
        has_rule = rule_of(unit) is not None and (units[0] == owner or isinstance(unit, nn.MultiheadAttention))
        layouts = _layouts(shapes[units[0]], samples)
        # Vectors are mostly scales and shifts of custom layers; repeating them over samples would not broadcast there.
        expands = units[0] == owner and not has_rule and samples > 1
        expands = expands and all(value.ndim > 1 for value in unit._parameters.values() if value is not None)
        for method in allowed:
            if method == "expand" and expands:
                ways.append(Way("expand", owner))
            elif method in ("vmap", "loop") or (method == "rule" and has_rule):
                ways += [Way(method, units[0], layout) for layout in layouts]
    if "vmap" in allowed:  # for a parameter that is also used outside its layer
        ways += [Way("vmap", unit, layout) for unit in units[1:] for layout in _layouts(shapes[unit], samples)[:1]]
    return [*ways, Way("one_by_one")]


def _layouts(shape: torch.Size, samples: int) -> list[Layout]:
    """Possible layouts of a first output of this shape, the likeliest first."""
    rows = shape[0] if shape else 0
    layouts: list[Layout] = ["first"] if rows == samples else []
    if len(shape) > 1 and shape[1] == samples:
        layouts.append("second")
    if rows > samples and rows % samples == 0:
        layouts.append("folded")
    if samples > 1:
        layouts.append("expanded" if rows == 1 else "prepended")
    return layouts


@contextmanager
def _as_measured(module: nn.Module) -> Iterator[None]:
    """Refuse layers that mix samples; enable gradients; no cuDNN for recurrent layers (no gradients in eval mode)."""
    recurrent = False
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"per-sample gradients are undefined if samples are normalised together: {type(layer).__name__} "
                f"{name!r} uses batch statistics; give it running statistics (track_running_stats=True, eval mode), or "
                "take another norm layer, such as GroupNorm"
            )
        recurrent |= isinstance(layer, nn.RNNBase)
    cudnn = torch.backends.cudnn.enabled
    try:
        # Not torch.backends.cudnn.flags(): it would change `benchmark` and `deterministic` too.
        torch.backends.cudnn.enabled = cudnn and not recurrent
        with torch.enable_grad():
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn


@contextmanager
def _perturbed(module: nn.Module, forward: Callable[[], Tensor]) -> Iterator[Callable[[], Tensor]]:
    """Replace trainable parameters by copies with noise of a tenth of their size; yields a pass with the copies."""
    generator = torch.Generator().manual_seed(0)
    own = [
        (layer, name, parameter)
        for layer in module.modules()
        for name, parameter in layer._parameters.items()
        if parameter is not None and parameter.requires_grad
    ]
    others: dict[nn.Parameter, nn.Parameter] = {}
    for _, _, parameter in own:
        if parameter not in others:
            value = parameter.detach()
            noise = torch.randn(value.shape, generator=generator).to(value)
            size = torch.linalg.vector_norm(value) / max(1, value.numel()) ** 0.5
            others[parameter] = nn.Parameter(value + noise * (0.1 * size + 0.01))

    def moved_forward() -> Tensor:
        _put((layer, name, others[parameter]) for layer, name, parameter in own)
        try:
            return forward()
        finally:  # the code that ran the pass may have restored the module's own parameters
            _put((layer, name, others[parameter]) for layer, name, parameter in own)

    try:
        yield moved_forward
    finally:
        _put(own)


def _put(parameters: Iterable[tuple[nn.Module, str, nn.Parameter]]) -> None:
    for layer, name, parameter in parameters:
        setattr(layer, name, parameter)


def _checked(logits: Tensor) -> Tensor:
    if not logits.requires_grad:
        raise ValueError(
            "the logits depend on no trainable parameter: all are frozen, or the forward pass detaches them "
            "(torch.no_grad, .detach()); pass predict_fn= that keeps the graph, or unfreeze a layer"
        )
    return plain(logits)
