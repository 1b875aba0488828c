"""The checks of a probe on one micro-batch, before the first optimizer step, and errors that name an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.writes import WrittenError
from lightning_probes.probing.objective import same_loss
from lightning_probes.probing.processes import is_out_of_memory
from lightning_probes.probing.user_code import UserCodeError, error_text, is_from_autograd, passes_unchanged
from lightning_probes.probing.view import ModelView


def check_parameters(view: ModelView) -> None:
    """Check that the module has trainable parameters.

    Raises:
        MisconfigurationException: If no parameter requires a gradient.
    """
    if not view.params:
        raise MisconfigurationException(
            f"{type(view.module).__name__} has no trainable parameters: a probe needs at least one with requires_grad"
        )


def check_loss(view: ModelView, split: str | None = None) -> None:
    """Check that the loss depends on parameters and batch alone.

    Args:
        view: The model.
        split: The probe set whose first micro-batch is used.

    Raises:
        MisconfigurationException: If the loss can't be computed, differs between two identical passes, depends on
            parameters that `module.parameters()` does not list, or if computing it writes to the parameters.
    """
    batch = view.probe_set(split).first
    scratch = view.scratch()
    with _blaming("loss", "loss_fn", split):
        first, second = two_passes(view, lambda either: either.loss(scratch, batch))
    written = [n for n, p in view.module.named_parameters() if not torch.equal(scratch[n], p.detach())]
    if written and torch.isfinite(first):
        raise MisconfigurationException(
            f"computing the loss writes to parameter {written[0]!r}: pass loss_fn=lambda module, batch: ... that only "
            "reads the parameters"
        )
    if not same_loss(first, second):
        raise MisconfigurationException(
            f"the loss of one batch differs between two identical passes ({float(first):.6g}, then "
            f"{float(second):.6g}), so it depends on more than parameters and batch: pass "
            "loss_fn=lambda module, batch: ... that does not"
        )
    _check_hidden(view, view.loss({}, batch) if view.twin.hidden_parameters else first)


def two_passes(view: ModelView, run: Callable[[ModelView], Tensor]) -> tuple[Tensor, Tensor]:
    """The results of two identical passes. The second runs without gradients if this gives the same bits.

    From then on, `view.detached` runs without gradients only if it did.
    """
    first = run(view.with_gradients)
    try:
        second = run(view.without_gradients)
        same = first.shape == second.shape and torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, WrittenError):
            raise
        same = False
    view.trials.append(same)
    return first, second if same else run(view.with_gradients)


def _check_hidden(view: ModelView, loss: Tensor) -> None:
    hidden = {path: p for path, p in view.twin.hidden_parameters.items() if p.requires_grad}
    if not hidden or not loss.requires_grad:
        return
    gradients = torch.autograd.grad(loss, list(hidden.values()), allow_unused=True)
    used = [path for path, gradient in zip(hidden, gradients, strict=True) if gradient is not None]
    if used:
        raise MisconfigurationException(
            f"the model uses a parameter at {used[0]!r} that module.parameters() does not list (is it in a plain "
            "list or dict?): keep it in an nn.ModuleList, nn.ModuleDict or nn.ParameterList"
        )


def check_logits(view: ModelView, split: str | None = None) -> None:
    """Check that the logits depend on parameters and batch alone.

    Raises:
        MisconfigurationException: If the logits can't be computed, differ between two identical passes, or depend on
            parameters that `module.parameters()` does not list.
    """
    batch = view.probe_set(split).first
    with _blaming("logits", "predict_fn", split), _blaming_inputs(view, batch):
        first, second = two_passes(view, lambda either: either.logits(batch)[0])
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise MisconfigurationException(
            "the logits of one batch differ between two identical passes: pass predict_fn=lambda module, batch: "
            "(logits, targets) that depends on parameters and batch alone"
        )
    _check_hidden(view, view.logits(batch)[0].sum() if view.twin.hidden_parameters else first)


@contextmanager
def blaming_reentrant_checkpoints() -> Iterator[None]:
    """If reentrant activation checkpointing prevents a derivative, raise an error that says how to avoid that.

    Raises:
        MisconfigurationException: If the block differentiates through a reentrant checkpoint; the message names
            `use_reentrant`.
    """
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise MisconfigurationException(
            "the model uses reentrant activation checkpointing, through which this probe can't differentiate: call "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False) in it"
        ) from error


@contextmanager
def blaming_derivatives(refusal: Callable[[str], Exception]) -> Iterator[None]:
    """If a derivative can't be computed, raise an error that says what to do.

    Args:
        refusal: Creates the error from the reason.

    Raises:
        MisconfigurationException: If the block differentiates something without a derivative, or through a reentrant
            checkpoint.
    """
    with blaming_reentrant_checkpoints():
        try:
            yield
        except (MisconfigurationException, ValueError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or "use_reentrant" in str(error):
                raise
            raise refusal(error_text(error)) from error


def no_gradient_of_loss(reason: str) -> Exception:
    """The `refusal` of `blaming_derivatives` for a loss that can't be differentiated; it names `loss_fn`."""
    return MisconfigurationException(
        f"the loss can't be differentiated in eval mode, which probes use ({reason}): if training works without "
        "this probe, pass loss_fn=lambda module, batch: ... that calls module.train() first"
    )


def no_gradient_of_logits(reason: str) -> Exception:
    """The `refusal` of `blaming_derivatives` for logits that can't be differentiated; it names `predict_fn`."""
    return MisconfigurationException(
        f"the logits can't be differentiated in eval mode, which probes use ({reason}): if training works without "
        "this probe, pass predict_fn=lambda module, batch: ... that calls module.train() first"
    )


@contextmanager
def _blaming(what: str, argument: str, split: str | None) -> Iterator[None]:
    """Turn an error of the user's code into one that names the argument to set."""
    try:
        yield
    except MisconfigurationException:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = error if isinstance(error, UserCodeError) else error_text(error)
        raise MisconfigurationException(
            f"the {what} of one batch of {split or 'probe'} data can't be computed ({cause}): "
            f"if training works without this probe, pass {argument}= that works on such a batch, or other data="
        ) from error


@contextmanager
def _blaming_inputs(view: ModelView, batch: MicroBatch) -> Iterator[None]:
    """If `forward` does not accept the inputs, raise an error that says which inputs it got."""
    try:
        yield
    except UserCodeError as error:
        # A forward that gets wrong inputs raises one of these. A bug may raise them too, so the cause is named.
        unfit = isinstance(error.__cause__, (TypeError, NotImplementedError, AttributeError, LookupError))
        if not unfit or view.objective.predict_fn is not None:
            raise
        mapping = isinstance(batch.content, Mapping)
        what = "the batch's entries as keyword arguments" if mapping else "the first part of the batch"
        raise MisconfigurationException(
            f"forward does not accept {what} ({error}): pass predict_fn=lambda module, batch: (logits, targets)"
        ) from error


@contextmanager
def naming(who: str, step: int | None = None) -> Iterator[None]:
    """Put the callback's name before its errors. For an error of the user's code, name the argument to set."""
    when = "" if step is None else f" at step {step}"
    try:
        yield
    except UserCodeError as error:
        raise MisconfigurationException(
            f"{who}: a pass{when} failed in the model's own code ({error}): pass {error.argument}= that works on the "
            "probe's samples at any step, data= whose samples work at any step, or on_error='warn' to continue without "
            "this measurement"
        ) from error.__cause__
    except Exception as error:
        if not passes_unchanged(error) and is_from_autograd(error):
            raise MisconfigurationException(
                f"{who}: a derivative{when} can't be computed ({error_text(error)}): pass loss_fn= (or predict_fn=, if "
                "it is a derivative of the logits) that can be differentiated at any step, or on_error='warn' to "
                "continue without this measurement"
            ) from error
        with signing(who):
            raise


@contextmanager
def signing(who: str) -> Iterator[None]:
    """Put the callback's name before its errors."""
    kinds = (MisconfigurationException, ValueError, TypeError)
    try:
        yield
    except kinds as error:
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{who}: {error}") from error
