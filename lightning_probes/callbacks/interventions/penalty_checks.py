"""Checks before the first optimizer step that the penalty can be computed, and acts on training as it should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.callbacks.interventions.fisher_term import fisher_term
from lightning_probes.functional.curvature.hvp import double_backward_kernels
from lightning_probes.functional.curvature.missing_curvature import Missing, missing_curvature
from lightning_probes.functional.likelihood import Likelihood, LikelihoodName
from lightning_probes.probing.checks import blaming_derivatives, check_logits, check_parameters
from lightning_probes.probing.collectives import exchanges
from lightning_probes.probing.isolation.double import widened, widened_state
from lightning_probes.probing.isolation.writes import is_written
from lightning_probes.probing.likelihoods import likelihood_of
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView

_INDEPENDENT = "it does not depend on the trainable parameters"


def check_term(view: ModelView, name: LikelihoodName, say: Speaker, carried: dict[str, Any]) -> Likelihood:
    """Check that the term and its gradient can be computed, and that they act on training as they should.

    Returns:
        The likelihood of the model's outputs.

    Raises:
        MisconfigurationException: If not; the message names what to change.
    """
    if view.run.precision in ("16-true", "transformer-engine-float16"):
        raise MisconfigurationException(
            f"precision={view.run.precision!r} is too coarse for the square of a gradient: train with "
            "precision='16-mixed', 'bf16-mixed' or 'bf16-true'"
        )
    if any("LBFGS" in group.optimizer for group in view.optimizers):
        raise MisconfigurationException(
            "LBFGS searches along a line by the loss, which lacks the penalty: train with another optimizer, or write "
            "the penalty into training_step"
        )
    check_parameters(view)
    with double_backward_kernels():
        check_logits(view)
        logits, targets = view.detached.logits(view.probe_set().first)
        try:
            likelihood = likelihood_of(view, name, logits, targets, say, carried)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
    with blaming_derivatives(_no_derivative):
        try:
            value, _ = fisher_term(view, likelihood)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        if value == 0:  # as within a reentrant checkpoint, which hides its parameters
            raise _no_derivative(_INDEPENDENT)
    if missing := _missing(view, likelihood):
        say.warn(
            "autograd misses second derivatives of the log-likelihood: Hessian-vector products differ from differences "
            f"of gradients by {missing.error:.1%}. The penalty does not act through an operation whose backward pass "
            "can't be differentiated, and through what is held constant (detach): pass predict_fn= without it"
        )
    return likelihood


def _no_derivative(reason: str) -> Exception:
    return MisconfigurationException(
        f"the log-likelihood can't be differentiated twice ({reason}), which the penalty needs: pass predict_fn=lambda "
        "module, batch: (logits, targets) with logits that can be"
    )


def _missing(view: ModelView, likelihood: Likelihood) -> Missing | None:
    """Compare in float64, because rounding in float32 would hide the difference; None if that is not possible."""
    # The number of passes may differ between processes, and a model that exchanges tensors would wait.
    if view.processes.size > 1 and view.processes.any(exchanges(view)):
        return None
    try:
        with double_backward_kernels():
            return _compared(replace(view, double=True), likelihood)
    except Exception as error:  # a kernel or a module that supports only one precision
        if is_written(error):
            raise
        return None


def _compared(view: ModelView, likelihood: Likelihood) -> Missing | None:
    state, trained = widened_state(view.module), view.params
    batch = replace(view.probe_set().first, content=widened(view.probe_set().first.content))
    logits, targets = view.detached.logits(batch, state)
    labels = likelihood.sample(logits, view.generator(1), targets)

    def surprise(params: Mapping[str, Tensor]) -> Tensor:
        return likelihood.nll(view.logits(batch, {**state, **params})[0], labels)[0]

    return missing_curvature(surprise, {name: state[name] for name in trained}, view.generator(2))
