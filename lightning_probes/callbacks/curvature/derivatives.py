"""Checks before the first optimizer step that a loss has the derivatives that a probe needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_probes.callbacks.curvature.custom_functions import (
    CustomFunction,
    Judgement,
    custom_functions,
    judged,
    names_of,
)
from lightning_probes.functional.curvature.hvp import gradient, hvp, linearize
from lightning_probes.functional.curvature.missing_curvature import Missing, missing_curvature
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.probing.checks import blaming_derivatives, no_gradient_of_loss
from lightning_probes.probing.collectives import exchanges
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.double import NarrowTensors, widened, widened_state
from lightning_probes.probing.isolation.writes import WrittenError
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.user_code import error_text
from lightning_probes.probing.view import ModelView

_FEW = 4  # samples
_INDEPENDENT = "it does not depend on the trainable parameters"

Found: TypeAlias = "tuple[Missing | None, Judgement]"


class ComputesInFloat32(Exception):
    """A part of a module computes in single precision, also for inputs in float64."""


def check_real(view: ModelView) -> None:
    """Check that the parameters are real numbers.

    Raises:
        MisconfigurationException: If one is complex.
    """
    for name, parameter in view.params.items():
        if parameter.is_complex():
            raise MisconfigurationException(
                f"parameter {name!r} is complex, and curvature is measured for real parameters only: keep it as a "
                "real one and call torch.view_as_complex in forward, or pass on_error='warn' to train without this "
                "probe"
            )


def check_gradient(view: ModelView) -> tuple[CustomFunction, ...]:
    """Check that the loss can be differentiated with respect to the parameters.

    Returns:
        The custom `autograd.Function`s in its graph.

    Raises:
        MisconfigurationException: If it can't; the message names `loss_fn`.
    """
    batch, custom = view.probe_set().first, set[CustomFunction]()

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        value = view.loss(params, batch)
        custom.update(custom_functions(value))
        if not value.requires_grad:
            raise no_gradient_of_loss(_INDEPENDENT)
        return value.clone()

    with blaming_derivatives(no_gradient_of_loss):
        gradient(loss, view.params)
    return tuple(custom)


def _no_second_derivative(reason: str) -> Exception:
    return MisconfigurationException(
        f"the loss can't be differentiated twice ({reason}): pass quantities=('sam',), which needs only first "
        "derivatives, or leave this probe out"
    )


def check_products(view: ModelView, custom: Sequence[CustomFunction], say: Speaker) -> None:
    """Check that the loss can be differentiated twice, and that autograd has all of its second derivatives.

    Run it with the same kernels as the measurement (`double_backward_kernels`).

    Args:
        view: The model.
        custom: The result of `check_gradient`.
        say: Reports checks that are not possible.

    Raises:
        MisconfigurationException: If it can't be differentiated twice, if autograd misses second derivatives, or if
            they are not symmetric; the message names `quantities`.
    """
    loss = partial(view.loss, batch=view.probe_set().first)
    with blaming_derivatives(_no_second_derivative):
        hvp(loss, view.params, torch.ones_like(to_vector(view.params)))
    # In the checks below, a process that finds a problem makes more passes than the others, and would wait for them.
    if view.processes.size > 1 and view.processes.any(exchanges(view)):
        say.info(
            "the loss waits for the other processes, so there is no check that autograd has all of its second "
            "derivatives"
        )
        return
    try:
        missing, functions = _missing(view, custom)
    except WrittenError:
        raise
    except Exception as error:  # a kernel or a module that supports only one precision
        if custom:
            say.warn(
                f"whether {', '.join(names_of(custom))} can be differentiated twice is not known, because the loss "
                f"does not run in float64 ({error_text(error)}): if it can't be, lambda_max and trace miss its part"
            )
        return
    if missing is None:
        return
    if not functions.unseen and functions.of_others and missing.symmetric:
        say.info(
            f"the backward pass of {', '.join(names_of(functions.of_others))} is not the derivative of the forward "
            "pass (such as a straight-through estimator, or gradients that are reversed or scaled). The curvature is "
            "that of the loss with this function replaced by the linear map of its backward pass: Hessian-vector "
            f"products differ from differences of gradients by {missing.error:.1%}"
        )
        return
    if not functions.unseen and missing.symmetric:
        say.info(
            "a part of the loss is held constant (detach, no_grad), and it is constant in the curvature too: "
            f"Hessian-vector products differ from differences of gradients by {missing.error:.1%}"
        )
        return
    if not functions.unseen and functions.of_others:
        raise MisconfigurationException(
            f"the backward pass of {', '.join(names_of(functions.of_others))} is not the derivative of the forward "
            "pass, and its gradients are not the gradients of any function. Their derivative is not symmetric and has "
            "no lambda_max: pass quantities=('sam',), which needs only first derivatives, or loss_fn= without it"
        )
    layers = list(dict.fromkeys(name.rpartition(".")[0] or "root" for name in missing.parameters))
    where = ", ".join(layers[:5]) + ", ..." * (len(layers) > 5)
    raise MisconfigurationException(
        f"autograd misses second derivatives of the loss{_through(functions.unseen)}: Hessian-vector products differ "
        f"from differences of gradients by {missing.error:.1%}, in layers {where}: pass quantities=('sam',), which "
        "needs only first derivatives, or loss_fn= without an operation whose backward pass can't be differentiated"
    )


def _through(functions: Sequence[CustomFunction]) -> str:
    return f" through {', '.join(names_of(functions))}" if functions else ""


def _missing(view: ModelView, custom: Sequence[CustomFunction]) -> Found:
    """Compare on a few samples in float64, because rounding in float32 would hide the difference."""
    first = view.probe_set().first
    batches = [first] if (few := _few(first)) is first else [few, first]
    for batch in batches:
        try:
            return _compare(view, batch, custom)
        except Exception as error:  # a module may need batches of one size
            if batch is batches[-1] or isinstance(error, WrittenError):
                raise
    return None, Judgement()


def _compare(view: ModelView, batch: MicroBatch, custom: Sequence[CustomFunction]) -> Found:
    state, trained = widened_state(view.module), view.params
    params = {name: tensor for name, tensor in state.items() if name in trained}
    batch, double = replace(batch, content=widened(batch.content)), replace(view, double=True)

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        return double.loss({**state, **params}, batch)

    missing = missing_curvature(loss, params, view.generator(1))
    if missing is None:
        return None, Judgement()
    with NarrowTensors() as narrow:
        linearize(loss, params)
    if narrow.seen:
        raise ComputesInFloat32
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    return missing, judged(double, {**state, **leaves}, batch, custom) if custom else Judgement()


def _few(batch: MicroBatch) -> MicroBatch:
    """The first few samples of a batch, if all tensors have the samples in dim 0; otherwise the batch itself."""
    tensors = [leaf for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor) and leaf.ndim]
    if batch.size <= _FEW or not tensors or any(len(tensor) != batch.size for tensor in tensors):
        return batch
    content = tree_map_only(Tensor, lambda tensor: tensor[:_FEW] if tensor.ndim else tensor, batch.content)
    return replace(batch, size=_FEW, content=content)
