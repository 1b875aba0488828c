"""Whether a loss has the derivatives that a probe takes of it, found out before the first optimizer step."""

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
from lightning_probes.probing.checks import blaming_derivatives
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.double import NarrowTensors, widened, widened_state
from lightning_probes.probing.isolation.writes import WrittenError
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.user_code import told
from lightning_probes.probing.view import ModelView

_FEW = 4  # samples
_INDEPENDENT = "it does not depend on the trainable parameters"

Found: TypeAlias = "tuple[Missing | None, Judgement]"


class ComputesInFloat32(Exception):
    """Something in a module computes in single precision, whatever it is given."""


def check_gradient(view: ModelView) -> tuple[CustomFunction, ...]:
    """The loss can be differentiated by the parameters.

    Returns:
        The custom `autograd.Function`s that it goes through.

    Raises:
        MisconfigurationException: If it can't; names `loss_fn`.
    """
    batch, custom = view.probe_set().first, set[CustomFunction]()

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        value = view.loss(params, batch)
        custom.update(custom_functions(value))
        if not value.requires_grad:
            raise _no_gradient(_INDEPENDENT)
        return value.clone()

    with blaming_derivatives(_no_gradient):
        gradient(loss, view.params)
    return tuple(custom)


def _no_gradient(reason: str) -> Exception:
    return MisconfigurationException(
        f"the loss can't be differentiated in eval mode, in which probes replay it ({reason}): if training runs "
        "without this probe, pass loss_fn=lambda module, batch: ... that calls module.train() first"
    )


def _no_second_derivative(reason: str) -> Exception:
    return MisconfigurationException(
        f"the loss can't be differentiated twice ({reason}): pass quantities=('sam',), which takes its first "
        "derivatives alone, or leave this probe out"
    )


def check_products(view: ModelView, custom: Sequence[CustomFunction], say: Speaker) -> None:
    """The loss can be differentiated twice, and autograd has all of its second derivatives.

    Run it with the kernels that are used later (`double_backward_kernels`).

    Args:
        view: The model.
        custom: What `check_gradient` has found.
        say: Tells what could not be found out.

    Raises:
        MisconfigurationException: If it can't, if autograd lacks some, or if they are not symmetric; names
            `quantities`.
    """
    loss = partial(view.loss, batch=view.probe_set().first)
    with blaming_derivatives(_no_second_derivative):
        hvp(loss, view.params, torch.ones_like(to_vector(view.params)))
    try:
        missing, functions = _missing(view, custom)
    except WrittenError:
        raise
    except Exception as error:  # a kernel or a module that is written for one precision
        if custom:
            say.warn(
                f"whether {', '.join(names_of(custom))} can be differentiated twice is not known, since the loss does "
                f"not run in float64 ({told(error)}): if not, lambda_max and trace lack what goes through it"
            )
        return
    if missing is None:
        return
    if not functions.unseen and functions.of_others and missing.symmetric:
        say.info(
            f"the backward pass of {', '.join(names_of(functions.of_others))} is not the derivative of the forward "
            "pass (as with gradients that go straight through, or are reversed or scaled). The curvature is that of "
            "the loss with the linear map of the backward pass in its place: Hessian-vector products differ from "
            f"differences of gradients by {missing.error:.1%}"
        )
        return
    if not functions.unseen and missing.symmetric:
        say.info(
            "the loss holds a part of itself constant (detach, no_grad), and so does its curvature: Hessian-vector "
            f"products differ from differences of gradients by {missing.error:.1%}"
        )
        return
    if not functions.unseen and functions.of_others:
        raise MisconfigurationException(
            f"the backward pass of {', '.join(names_of(functions.of_others))} is not the derivative of the forward "
            "pass, and makes gradients that are those of no function: their derivative is no symmetric matrix and has "
            "no lambda_max: pass quantities=('sam',), which takes first derivatives alone, or loss_fn= without it"
        )
    layers = list(dict.fromkeys(name.rpartition(".")[0] or "root" for name in missing.parameters))
    where = ", ".join(layers[:5]) + ", ..." * (len(layers) > 5)
    raise MisconfigurationException(
        f"autograd lacks second derivatives of the loss{_through(functions.unseen)}: Hessian-vector products are "
        f"{missing.error:.1%} off differences of gradients, in layers {where}: pass quantities=('sam',), which takes "
        "first derivatives alone, or loss_fn= without an operation whose backward pass autograd can't see"
    )


def _through(functions: Sequence[CustomFunction]) -> str:
    return f" through {', '.join(names_of(functions))}" if functions else ""


def _missing(view: ModelView, custom: Sequence[CustomFunction]) -> Found:
    """Compare on a few samples, in float64: the rounding of float32 hides what is looked for."""
    first = view.probe_set().first
    batches = [first] if (few := _few(first)) is first else [few, first]
    for batch in batches:
        try:
            return _compare(view, batch, custom)
        except Exception as error:  # a module may want batches of one size
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
    """The first few samples of a batch, if it is clear which they are; else the batch itself."""
    tensors = [leaf for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor) and leaf.ndim]
    if batch.size <= _FEW or not tensors or any(len(tensor) != batch.size for tensor in tensors):
        return batch
    content = tree_map_only(Tensor, lambda tensor: tensor[:_FEW] if tensor.ndim else tensor, batch.content)
    return replace(batch, size=_FEW, content=content)
