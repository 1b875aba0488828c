"""Whether a loss has the derivatives that a probe takes of it, found out before the first optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_probes.functional.curvature.hvp import gradient, hvp, linearize
from lightning_probes.functional.curvature.missing_curvature import Missing, missing_curvature
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.probing.checks import blaming_reentrant_checkpoints
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.double import NarrowTensors, widened, widened_state
from lightning_probes.probing.isolation.writes import WrittenError
from lightning_probes.probing.run.processes import is_out_of_memory
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.user_code import told
from lightning_probes.probing.view import ModelView

_FEW = 4  # samples


class ComputesInFloat32(Exception):
    """Something in a module computes in single precision, whatever it is given."""


def check_gradient(view: ModelView) -> tuple[str, ...]:
    """The loss can be differentiated by the parameters.

    Returns:
        Names of the custom `autograd.Function`s that it goes through.

    Raises:
        MisconfigurationException: If it can't; names `loss_fn`.
    """
    batch, custom, reason = view.probe_set().first, set[str](), "it does not depend on the trainable parameters"

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        value = view.loss(params, batch)
        custom.update(_custom_functions(value))
        return value.clone() if value.requires_grad else _refuse(reason)

    with blaming_reentrant_checkpoints():
        try:
            gradient(loss, view.params)
        except (MisconfigurationException, ValueError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or "use_reentrant" in str(error):
                raise
            _refuse(told(error))
    return tuple(sorted(custom))


def _refuse(reason: str) -> Tensor:
    raise MisconfigurationException(
        f"the loss can't be differentiated in eval mode, in which probes replay it ({reason}): if training runs "
        "without this probe, pass loss_fn=lambda module, batch: ... that calls module.train() first"
    )


def check_products(view: ModelView, custom: Sequence[str], say: Speaker) -> None:
    """The loss can be differentiated twice, and autograd has all of its second derivatives.

    Run it with the kernels that are used later (`double_backward_kernels`).

    Args:
        view: The model.
        custom: What `check_gradient` has found.
        say: Tells what could not be found out.

    Raises:
        MisconfigurationException: If it can't, or if autograd lacks some; names the layers, and `quantities`.
    """
    loss = partial(view.loss, batch=view.probe_set().first)
    with blaming_reentrant_checkpoints():
        try:
            hvp(loss, view.params, torch.ones_like(to_vector(view.params)))
        except (MisconfigurationException, ValueError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or "use_reentrant" in str(error):
                raise
            raise MisconfigurationException(
                f"the loss can't be differentiated twice ({told(error)}): pass quantities=('sam',), which takes its "
                "first derivatives alone, or leave this probe out"
            ) from error
    try:
        missing = _missing(view)
    except WrittenError:
        raise
    except Exception as error:  # a kernel or a module that is written for one precision
        if custom:
            say.warn(
                f"whether {', '.join(custom)} can be differentiated twice is not known, since the loss does not run in "
                f"float64 ({told(error)}): if not, lambda_max and trace lack what goes through it"
            )
        return
    if missing is None:
        return
    if not custom and missing.symmetric:
        say.info(
            "the loss holds a part of itself constant (detach, no_grad), and so does its curvature: Hessian-vector "
            f"products differ from differences of gradients by {missing.error:.1%}"
        )
        return
    layers = list(dict.fromkeys(name.rpartition(".")[0] or "root" for name in missing.parameters))
    where = ", ".join(layers[:5]) + ", ..." * (len(layers) > 5)
    raise MisconfigurationException(
        f"autograd lacks second derivatives of the loss{_through(custom)}: Hessian-vector products are "
        f"{missing.error:.1%} off differences of gradients, in layers {where}: pass quantities=('sam',), which takes "
        "first derivatives alone, or loss_fn= without an operation whose backward pass autograd can't see"
    )


def _through(custom: Sequence[str]) -> str:
    return f" through {', '.join(custom)}" if custom else ""


def _missing(view: ModelView) -> Missing | None:
    """Compare on a few samples, in float64: the rounding of float32 hides what is looked for."""
    first = view.probe_set().first
    batches = [first] if (few := _few(first)) is first else [few, first]
    for batch in batches:
        try:
            return _compare(view, batch)
        except Exception as error:  # a module may want batches of one size
            if batch is batches[-1] or isinstance(error, WrittenError):
                raise
    return None


def _compare(view: ModelView, batch: MicroBatch) -> Missing | None:
    state, trained = widened_state(view.module), view.params
    params = {name: tensor for name, tensor in state.items() if name in trained}
    batch, double = replace(batch, content=widened(batch.content)), replace(view, double=True)

    def loss(params: Mapping[str, Tensor]) -> Tensor:
        return double.loss({**state, **params}, batch)

    missing = missing_curvature(loss, params, view.generator(1))
    if missing is not None:
        with NarrowTensors() as narrow:
            linearize(loss, params)
        if narrow.seen:
            raise ComputesInFloat32
    return missing


def _few(batch: MicroBatch) -> MicroBatch:
    """The first few samples of a batch, if it is clear which they are; else the batch itself."""
    tensors = [leaf for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor) and leaf.ndim]
    if batch.size <= _FEW or not tensors or any(len(tensor) != batch.size for tensor in tensors):
        return batch
    content = tree_map_only(Tensor, lambda tensor: tensor[:_FEW] if tensor.ndim else tensor, batch.content)
    return replace(batch, size=_FEW, content=content)


def _custom_functions(value: Tensor) -> Iterator[str]:
    """Names of the `autograd.Function`s in a graph that are not PyTorch's own."""
    waiting, seen = [value.grad_fn], set[object]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if isinstance(node, BackwardCFunction) and not type(node)._forward_cls.__module__.startswith("torch.nn."):
            yield type(node).__name__.removesuffix("Backward")
        elif "CppNode" in node.name():
            yield node.name()
