"""The network linearised about its initialisation, compared with the network itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.autograd import forward_ad

from lightning_probes.callbacks.paths.path import moved
from lightning_probes.callbacks.paths.scores import Scorer
from lightning_probes.functional.curvature.hvp import double_backward_kernels
from lightning_probes.functional.fast_path import without_fast_path
from lightning_probes.functional.wide import on_host
from lightning_probes.metrics.mean_estimate import estimate_mean
from lightning_probes.probing.checks import blaming_derivatives, check_logits
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Scalar

Layers: TypeAlias = "str | Sequence[str] | None"


def check_linearized(view: ModelView, layers: Layers) -> None:
    """Check that the logits have forward-mode derivatives.

    Args:
        view: The model.
        layers: Names or globs of the layers that move; None for all.

    Raises:
        MisconfigurationException: If they do not; the message names `linearized` and the operation without a rule.
    """
    check_logits(view)

    def refused(reason: str) -> Exception:
        return MisconfigurationException(
            f"linearized=True needs forward-mode derivatives of the logits, and the model has none ({reason}): pass "
            "linearized=False"
        )

    now = _moving(view, layers)
    still = {name: torch.zeros_like(tensor) for name, tensor in now.items()}
    with blaming_derivatives(refused):
        first_order(view, view.probe_set().first, now, still)


def linearized(view: ModelView, scorer: Scorer, layers: Layers) -> Iterator[Scalar]:
    """How far the first-order expansion of the logits about the initialisation is from the logits now.

    Args:
        view: The model; the first probe set is used. Buffers have their present values in both.
        scorer: Knows whether the logits are those of classes.
        layers: Names or globs of the layers that move; None for all.

    Yields:
        `linearized_error`, relative to how far the logits have moved, and absent if they have not; and
        `linearized_accuracy`, if there are classes.
    """
    end = _moving(view, layers)
    start = view.initial(end)
    change = {name: end[name] - tensor for name, tensor in start.items()}
    has_moved = any(bool(along.any()) for along in change.values())  # two kinds of pass may round differently
    squares: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}
    for batch in view.batches():
        at_end, targets = view.detached.logits(batch, end)
        at_start, slope = first_order(view, batch, start, change)
        expansion = at_start + slope
        parts = (expansion - at_end).abs().square().sum(), (at_end - at_start).abs().square().sum()
        squares[batch.index] = torch.stack(parts)
        if (counted := scorer.correct(view, expansion, targets)) is not None:
            counts[batch.index] = counted
    missed, travelled = view.of_all(squares, shape=(2,)).unbind(1)
    if has_moved and travelled.sum() > 0:
        yield _relative(missed, travelled, on_host(view.probe_set().sizes))
    correct, counted = view.of_all(counts, shape=(2,)).sum(0).tolist()
    if counted:
        share = correct / counted
        yield Scalar("linearized_accuracy", share, (share * (1 - share) / counted) ** 0.5)


def first_order(
    view: ModelView, batch: MicroBatch, start: Mapping[str, Tensor], change: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The logits of a micro-batch at `start`, and their derivative along `change`, by one forward-mode pass."""
    with _forward_mode():
        dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual
        params = {name: dual(start[name].detach(), along) for name, along in change.items()}
        logits, slope = forward_ad.unpack_dual(view.logits(batch, params)[0])  # type: ignore[no-untyped-call]
        if slope is None:  # the logits do not depend on these parameters
            slope = torch.zeros_like(logits)
    return logits.detach(), slope.detach()


def _moving(view: ModelView, layers: Layers) -> dict[str, Tensor]:
    """The current values of the parameters that move, but for integer ones, which have no derivative."""
    now = dict(view.module.named_parameters())
    continuous = (name for name in moved(view, layers) if now[name].is_floating_point() or now[name].is_complex())
    return {name: now[name].detach() for name in continuous}


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Forward-mode derivatives, with kernels that have them: oneDNN's recurrent layers have none."""
    backends: Any = torch.backends
    onednn = backends.mkldnn.enabled
    with ExitStack() as stack:
        for context in (torch.no_grad(), double_backward_kernels(), without_fast_path(), forward_ad.dual_level()):
            stack.enter_context(context)
        try:
            backends.mkldnn.enabled = False
            yield
        finally:
            backends.mkldnn.enabled = onednn


def _relative(missed: Tensor, travelled: Tensor, sizes: Tensor) -> Scalar:
    """The root of the ratio of two sums of squares over micro-batches, with its standard error over these."""
    ratio = float((missed.sum() / travelled.sum()).sqrt())
    residuals = estimate_mean((missed - ratio**2 * travelled) / sizes, sizes.tolist()).standard_error
    scale = 2 * ratio * float(travelled.sum() / sizes.sum())
    error = None if residuals is None or not scale else residuals / scale
    return Scalar("linearized_error", ratio, error)
