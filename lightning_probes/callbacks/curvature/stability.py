"""The largest stable curvature of a run's optimizers at this step, for each parameter; and the flags about it."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from lightning_probes.callbacks.curvature.hessian import Curvature
from lightning_probes.functional.curvature.stability_limits import (
    adam_inverse_threshold,
    adam_preconditioner,
    asleep,
    clipping_factor,
    is_young,
    preconditioned,
    sgd_inverse_threshold,
)
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.run.optimizers import OptimizerGroup
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Flag

_ADAM = ("Adam", "AdamW")


@dataclass(frozen=True)
class Stability:
    """The scales that turn the Hessian into a stability ratio.

    Attributes:
        inverse_threshold: One over the largest stable curvature of each parameter, shape `(n,)`; zero for parameters
            that no optimizer updates. The top eigenvalue of the Hessian scaled by it is the stability ratio.
        uniform: The inverse threshold, if it is the same for all parameters; for Adam that of the preconditioned
            Hessian.
        inverse_preconditioner: For Adam one over its preconditioner, shape `(n,)`; otherwise None.
    """

    inverse_threshold: Tensor
    uniform: float | None
    inverse_preconditioner: Tensor | None


def stability_of(groups: Sequence[OptimizerGroup], params: Mapping[str, Tensor]) -> Stability | None:
    """Read the thresholds of SGD, Adam and AdamW from their parameter groups and state.

    Args:
        groups: The optimizers' groups at this step.
        params: The trainable parameters.

    Returns:
        None if there is no group, or if a group belongs to another optimizer or to an Adam in its first
        `1 / (1 - beta1)` steps.

    Example:
        >>> group = OptimizerGroup("SGD", {"lr": 0.1, "momentum": 0.0}, {"weight": {}})
        >>> stability_of([group], {"weight": torch.zeros(2)}).inverse_threshold
        tensor([0.0500, 0.0500])
    """
    groups = [group for group in groups if group.state]
    if not groups or not known(groups) or any(group.options.get("maximize") for group in groups):
        return None
    groups = _with_steps_read(groups)
    inverse = {name: torch.zeros_like(parameter) for name, parameter in params.items()}
    inverse_preconditioner: dict[str, Tensor] = {}
    eps: dict[str, float] = {}
    numbers = set()
    for group in groups:
        options, lr = group.options, float(group.options["lr"])
        if group.optimizer == "SGD":
            momentum, dampening = float(options["momentum"]), float(options.get("dampening", 0.0))
            number = sgd_inverse_threshold(lr, momentum, dampening, options.get("nesterov", False))
            inverse.update({name: torch.full_like(params[name], number) for name in group.state})
            numbers.add(number)
            continue
        beta1, beta2 = map(float, options["betas"])
        numbers.add(float(adam_inverse_threshold(lr, beta1, torch.ones(()))))
        for name, state in group.state.items():
            if "exp_avg_sq" not in state or is_young(state["step"], beta1):
                continue
            second = state["max_exp_avg_sq" if options.get("amsgrad") else "exp_avg_sq"]
            second = second.to(torch.promote_types(second.dtype, torch.float32))
            preconditioner = adam_preconditioner(second, state["step"], beta1, beta2, options["eps"])
            inverse[name] = adam_inverse_threshold(lr, beta1, preconditioner)
            inverse_preconditioner[name] = 1 / preconditioner
            eps[name] = float(adam_preconditioner(on_host(0.0), state["step"], beta1, beta2, options["eps"]))
    adam = {name for group in groups if group.optimizer in _ADAM for name in group.state}
    if adam and not inverse_preconditioner:
        return None
    for name, still in asleep(inverse_preconditioner, eps).items():
        inverse[name].masked_fill_(still, 0.0)
        inverse_preconditioner[name].masked_fill_(still, 0.0)
    # Zero for a parameter that never had a gradient, because it has no part in the dynamics; and for a young one,
    # because its preconditioner is not known yet.
    scale = {name: inverse_preconditioner.get(name, torch.zeros_like(p)) for name, p in params.items()}
    covered = {name for group in groups for name in group.state}
    return Stability(
        inverse_threshold=to_vector({name: inverse[name] for name in params}),
        uniform=numbers.pop() if len(numbers) == 1 and covered >= set(params) else None,
        inverse_preconditioner=to_vector(scale) if adam >= set(params) else None,
    )


def _with_steps_read(groups: Sequence[OptimizerGroup]) -> list[OptimizerGroup]:
    """The groups with their step counts as plain numbers, with one device-to-host copy for fused optimizers.

    Example:
        >>> [group] = _with_steps_read([OptimizerGroup("Adam", {}, {"weight": {"step": torch.tensor(3.0)}})])
        >>> group.state["weight"]["step"]
        3.0
    """
    steps = [torch.as_tensor(state["step"]) for group in groups for state in group.state.values() if "step" in state]
    read = iter(on_host(torch.stack([step.to(steps[0].device) for step in steps])).tolist() if steps else [])

    def plain(state: Mapping[str, Any]) -> Mapping[str, Any]:
        # Not a merged dict, which would copy the optimizer's whole state of the parameter.
        return ChainMap({"step": next(read)}, cast(dict[str, Any], state)) if "step" in state else state

    return [replace(group, state={name: plain(state) for name, state in group.state.items()}) for group in groups]


@dataclass(frozen=True)
class Relative:
    """Curvature relative to the optimizer's stability threshold.

    Attributes:
        ratio: 1 is the edge of stability.
        preconditioned: For Adam the largest eigenvalue of the preconditioned Hessian; otherwise None.
    """

    ratio: float
    preconditioned: float | None


def relative_to_stability(
    view: ModelView, curvature: Curvature, carried: dict[str, Any], say: Speaker
) -> Relative | None:
    """Divide the curvature by the stability threshold of the run's optimizers, if that is known.

    Args:
        view: The model.
        curvature: Its curvature, with the eigenpair `lambda_max`.
        carried: See `Curvature.top_eigenpair`.
        say: Reports optimizers whose threshold is not known.
    """
    stability = stability_of(view.optimizers, view.params)
    if stability is None:
        if not known(view.optimizers):
            names = ", ".join(sorted({group.optimizer for group in view.optimizers}))
            say.info(f"the stability threshold of {names} is not known, so there is no stability_ratio")
        return None
    top, of_adam = curvature.eigenpairs["lambda_max"], None
    if stability.inverse_preconditioner is not None:
        scaled = preconditioned(curvature.matvec, stability.inverse_preconditioner)
        top = curvature.top_eigenpair("lambda_max_preconditioned", carried, scaled)
        of_adam = top.value
    if stability.uniform is None:
        scaled = preconditioned(curvature.matvec, stability.inverse_threshold)
        top = curvature.top_eigenpair("stability_ratio", carried, scaled)
    ratio = top.value * (1.0 if stability.uniform is None else stability.uniform)
    return Relative(ratio * clipping_factor(view.gradient_clip, curvature.gradient), of_adam)


def known(groups: Sequence[OptimizerGroup]) -> bool:
    """Whether the stability threshold of every group's optimizer is known."""
    return all(group.optimizer in ("SGD", *_ADAM) for group in groups if group.state)


def stability_flags(
    ratio: float, loss: float, history: Sequence[Mapping[str, float]], name: str, threshold: float
) -> Iterator[Flag]:
    """Raise `edge_of_stability` at ratios of at least 1, and `unstable` if the learning rate is too large.

    The ratio alone is not enough, because training may pass through a phase with a large ratio and still learn. So
    `unstable` needs two measurements in a row over the threshold, and a loss that has not fallen since the ratio was
    below it.

    Args:
        ratio: The stability ratio of this measurement.
        loss: The loss on the same samples.
        history: The probe's earlier measurements, oldest first.
        name: The probe's name, the prefix of the keys of `history`.
        threshold: The ratio above which `unstable` may be raised.

    Yields:
        Both flags, raised or not.

    Example:
        >>> history = [{"sharpness/stability_ratio": 0.9, "sharpness/loss": 2.1},
        ...            {"sharpness/stability_ratio": 8.0, "sharpness/loss": 3.4}]
        >>> [flag.key for flag in stability_flags(5.0, 3.0, history, "sharpness", 2.0) if flag.raised]
        ['edge_of_stability', 'unstable']
        >>> [flag.key for flag in stability_flags(5.0, 2.0, history, "sharpness", 2.0) if flag.raised]
        ['edge_of_stability']
    """
    yield Flag(
        "edge_of_stability", ratio >= 1, ratio, 1.0,
        f"sharpness is {ratio:.2f} times the stability threshold: normal while the loss falls over many steps",
        level="info",
    )  # fmt: skip
    before = history[-1].get(f"{name}/stability_ratio", 0.0) if history else 0.0
    last_stable = _last_stable(history, f"{name}/stability_ratio", threshold).get(f"{name}/loss", math.nan)
    yield Flag(
        "unstable", min(ratio, before) > threshold and not loss < last_stable, ratio, threshold,
        f"sharpness was over {threshold:g} times the stability threshold twice in a row, now {ratio:.2f} times, and "
        f"the loss has not fallen since ({last_stable:.3g} before, now {loss:.3g}): lower the learning rate",
    )  # fmt: skip


def _last_stable(history: Sequence[Mapping[str, float]], key: str, threshold: float) -> Mapping[str, float]:
    """The last measurement with a ratio not over the threshold; the first measurement if there is none."""
    stable = (entry for entry in reversed(history) if entry.get(key, math.inf) <= threshold)
    return next(stable, history[0] if history else {})
