"""A penalty on the trace of the Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_probes.callbacks.interventions.fisher_term import fisher_term
from lightning_probes.callbacks.interventions.penalty_checks import check_term
from lightning_probes.callbacks.interventions.pictures import FISHER_PENALTY_HEADLINES, FISHER_PENALTY_PANELS
from lightning_probes.callbacks.interventions.readings import FISHER_PENALTY
from lightning_probes.callbacks.interventions.until import check_until, end_of
from lightning_probes.functional.likelihood import LikelihoodName
from lightning_probes.probing.arguments import ProbeArguments, ScheduledArguments
from lightning_probes.probing.intervention import Intervention, OptimizerStep
from lightning_probes.probing.objective import Objective, PredictFn
from lightning_probes.probing.price import Price
from lightning_probes.probing.schedules import EveryNSteps
from lightning_probes.probing.values import (
    check_choice,
    check_function,
    check_number,
    check_switch,
    check_whole_number,
    refuse,
)
from lightning_probes.results import Result, Scalar


class FisherPenalty(Intervention):
    r"""Keeps the trace of the Fisher information small, by a term that it adds to the loss's gradient.

    .. math:: c \, B \, \left\| \frac{1}{B} \sum_i \nabla_\theta \log p_\theta(\hat y_i | x_i) \right\|^2

    over the samples of a training batch, with labels drawn from the model. The factor B makes the coefficient c
    independent of the batch size: the expectation of the term is c times the trace (exactly, without BatchNorm).
    Jastrzebski et al. (2021, arXiv:2012.14193) add it to training with a small learning rate.

    The term's gradient is computed every `every` optimizer steps, at the last batch of the step, and added to the
    gradients of this and the following steps: after accumulation and the mean over processes, before clipping. It is
    computed on a copy of the module in training mode, in full precision, and averaged over processes. Parameters to
    which training gives no gradient get none, and a step without any gradient remains one.

    Reports `value`, the estimate of the trace from that batch (unbiased, without a standard error, a mean over
    processes), and `share`, the norm of what is added over the norm of the loss's gradient. With a coefficient of 0 it
    reports the same, and training is bit-identical to training without it.

    Cost: every `every` steps a forward, a backward and a double backward pass over one batch, about three to four times
    a training step. In between it adds one vector to the gradients. It keeps one tensor per parameter.

    Args:
        coefficient: The factor c. There is no default. c times the trace is what the loss grows by: 0.1 to 1, divided
            by the largest trace that `FisherTrace` reports without a penalty, is a good start.
        every: Steps between two computations of the term.
        until: The optimizer step from which on nothing is added: a whole number of steps, or a share of the fit, such
            as 0.3; None for never.
        exclude_norm: Leave the parameters of normalisation layers out of the trace.
        likelihood: See `FisherTrace`.
        predict_fn: See `Probe`.

    All further arguments are those of `Intervention`.

    Raises:
        ValueError: If an argument is missing or out of range.

    Example:
        >>> FisherPenalty(1e-3, until=0.5).every
        10
    """

    defaults = ProbeArguments(schedule=EveryNSteps(10), name="fisher_penalty")
    readings = FISHER_PENALTY
    panels = FISHER_PENALTY_PANELS
    headlines = FISHER_PENALTY_HEADLINES

    def __init__(
        self,
        coefficient: float | None = None,
        *,
        every: int = 10,
        until: float | None = None,
        exclude_norm: bool = False,
        likelihood: LikelihoodName = "auto",
        predict_fn: PredictFn | None = None,
        **shared: Unpack[ScheduledArguments],
    ) -> None:
        super().__init__(**shared)
        if coefficient is None:
            scale = "coefficient x the peak of FisherTrace's trace is what the loss grows by: choose 0.1 to 1 for it"
            refuse("coefficient", f"a finite number of at least 0, and has no default ({scale})", coefficient)
        check_number("coefficient", coefficient, least=0)
        check_whole_number("every", every, least=1)
        check_until(until)
        check_switch("exclude_norm", exclude_norm)
        check_choice("likelihood", likelihood, get_args(LikelihoodName))
        check_function("predict_fn", predict_fn)
        self.coefficient = coefficient
        self.every = every
        self.until = until
        self.exclude_norm = exclude_norm
        self.likelihood = likelihood
        self.objective = Objective(predict_fn=predict_fn)

    @property
    def price(self) -> Sequence[Price]:
        """One Hessian-vector product, every `every` steps."""
        return Price(copies=1), Price(products=1, copies=4, only=f"every {self.every} steps")

    def prepare(self, step: OptimizerStep) -> None:
        """Check that the term can be computed and will be right, and find out until when it is added."""
        with step.look() as view:
            self._likelihood = check_term(view, self.likelihood, self.say, self.carried)
            self._end = end_of(self.until, view.run.planned_steps)

    def intervene(self, step: OptimizerStep) -> Iterator[Result]:
        """Add the term's gradient, and compute it anew if that is due."""
        assert step.stepping is not None
        place, scale = step.stepping.place, step.stepping.scale
        if step.step >= self._end:
            self.kept = {}
            return
        before = self.carried.setdefault("refreshed", {})
        if before.get(place, -1) // self.every < step.step // self.every:
            self._refresh(step)
            before[place] = step.step
        added = {name: self.kept[name] for name in step.gradients if name in self.kept}
        if step.is_reported:
            yield Scalar("value", self.carried["value"])
            if 0 < (norm := _norm(step.gradients.values())) < float("inf"):  # a gradient scaler may skip this step
                yield Scalar("share", float(1 if scale is None else scale) * _norm(added.values()) / norm)
        for name, term in added.items():
            gradient = step.gradients[name]
            gradient.add_(term.to(gradient.dtype) if scale is None else (term * scale).to(gradient.dtype))

    def _refresh(self, step: OptimizerStep) -> None:
        with step.look() as view:
            value, terms = fisher_term(view, self._likelihood, self.exclude_norm, only_value=self.coefficient == 0)
        self.carried["value"] = value
        mine = {name: term * self.coefficient for name, term in terms.items() if name in step.gradients}
        self.kept = {**self.kept, **mine}


def _norm(tensors: Iterable[Tensor]) -> float:
    norms = [tensor.float().norm() for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0
