"""What a probe makes sure of on one micro-batch, before the first optimizer step is paid for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.isolation.writes import WrittenError
from lightning_probes.probing.objective import same_loss
from lightning_probes.probing.run.processes import is_out_of_memory
from lightning_probes.probing.user_code import UserCodeError, is_from_autograd, is_said, told
from lightning_probes.probing.view import ModelView


def check_parameters(view: ModelView) -> None:
    """There is something to train, and nothing that trains out of sight.

    Raises:
        MisconfigurationException: If no parameter requires a gradient.
    """
    if not view.params:
        raise MisconfigurationException(
            f"{type(view.module).__name__} has no trainable parameters: a probe needs at least one with requires_grad"
        )


def check_loss(view: ModelView, split: str | None = None) -> None:
    """The loss is a function of parameters and batch alone.

    Args:
        view: The model.
        split: The probe set whose first micro-batch is tried.

    Raises:
        MisconfigurationException: If the loss can't be had, differs between two identical passes, depends on parameters
            that `module.parameters()` does not list, or writes to the parameters.
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
    """What two identical passes give; the second without gradients if that gives the same, bit for bit.

    What is found decides how `view.detached` runs from then on.
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
    """The logits are a function of parameters and batch alone, with one row a sample.

    Raises:
        MisconfigurationException: If logits can't be had, differ between two identical passes, or depend on parameters
            that `module.parameters()` does not list.
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
    """Say of a derivative that reentrant activation checkpointing does not allow how to allow it.

    Raises:
        MisconfigurationException: If the block differentiates through a reentrant checkpoint; names `use_reentrant`.
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
    """Say of derivatives that can't be had what helps.

    Args:
        refusal: Makes the error from a reason.

    Raises:
        MisconfigurationException: If the block differentiates what has no derivative, or a reentrant checkpoint.
    """
    with blaming_reentrant_checkpoints():
        try:
            yield
        except (MisconfigurationException, ValueError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or "use_reentrant" in str(error):
                raise
            raise refusal(told(error)) from error


def no_gradient_of_logits(reason: str) -> Exception:
    """For `blaming_derivatives`: logits that can't be differentiated in eval mode; names `predict_fn`."""
    return MisconfigurationException(
        f"the logits can't be differentiated in eval mode, in which probes replay them ({reason}): if training runs "
        "without this probe, pass predict_fn=lambda module, batch: ... that calls module.train() first"
    )


@contextmanager
def _blaming(what: str, argument: str, split: str | None) -> Iterator[None]:
    """Say of an error in the user's code which argument would avoid it."""
    try:
        yield
    except MisconfigurationException:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = error if isinstance(error, UserCodeError) else told(error)
        raise MisconfigurationException(
            f"the {what} of one batch of {split or 'probe'} data can't be computed ({cause}): "
            f"if training runs without this probe, pass {argument}= for such a batch, or other data="
        ) from error


@contextmanager
def _blaming_inputs(view: ModelView, batch: MicroBatch) -> Iterator[None]:
    """Say of a forward that wants other inputs which it was given."""
    try:
        yield
    except UserCodeError as error:
        # What such a forward raises. A bug in it may raise the same, so that the cause is named too.
        unfit = isinstance(error.__cause__, (TypeError, NotImplementedError, AttributeError, LookupError))
        if not unfit or view.objective.predict_fn is not None:
            raise
        mapping = isinstance(batch.content, Mapping)
        what = "parts of the batch by their names" if mapping else "the first part of the batch"
        raise MisconfigurationException(
            f"forward can't take {what} ({error}): pass predict_fn=lambda module, batch: (logits, targets)"
        ) from error


@contextmanager
def naming(who: str, step: int | None = None) -> Iterator[None]:
    """Put the name of who measures before what it objects to, and say of the user's code what can take its place."""
    when = "" if step is None else f" at step {step}"
    try:
        yield
    except UserCodeError as error:
        raise MisconfigurationException(
            f"{who}: a pass{when} failed in the model's own code ({error}): pass "
            f"{error.argument}= that works on the probe's samples at any step, data= whose samples stay as training "
            "has them, or on_error='warn' to go on without this measurement"
        ) from error.__cause__
    except Exception as error:
        if not is_said(error) and is_from_autograd(error):
            raise MisconfigurationException(
                f"{who}: a derivative{when} can't be had ({told(error)}): pass loss_fn= (or predict_fn=, if it is of "
                "the logits) that can be differentiated at any step, or on_error='warn' to go on without this "
                "measurement"
            ) from error
        with signing(who):
            raise


@contextmanager
def signing(who: str) -> Iterator[None]:
    """Put the name of who objects before the objection."""
    kinds = (MisconfigurationException, ValueError, TypeError)
    try:
        yield
    except kinds as error:
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{who}: {error}") from error
