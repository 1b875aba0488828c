"""Trace of the Fisher information."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_probes.callbacks.curvature.fisher import Labels, SampleNorms
from lightning_probes.callbacks.curvature.peaks import explosion, peaks
from lightning_probes.callbacks.curvature.pictures import EMPIRICAL_PANELS, FISHER_TRACE_PANELS, peak_at_equal_loss
from lightning_probes.callbacks.curvature.readings import FISHER_TRACE
from lightning_probes.functional.likelihood import LikelihoodName
from lightning_probes.functional.wide import on_host
from lightning_probes.metrics import MeanEstimate
from lightning_probes.probing.arguments import PredictionArguments, ProbeArguments
from lightning_probes.probing.checks import check_logits
from lightning_probes.probing.layers import by_layer
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_logits
from lightning_probes.probing.schedules import LogSpacedSteps
from lightning_probes.probing.values import check_choice, check_number, check_switch
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result, Scalar


class FisherTrace(Probe):
    r"""Trace of the Fisher information matrix: how sensitive the predictions are to the weights.

    .. math:: \mathrm{Tr} F = E_x E_{y \sim p_\theta(y|x)} \| \nabla_\theta \log p_\theta(y|x) \|^2

    An early explosion of the trace, as with a small learning rate, correlates with worse generalisation (Jastrzebski et
    al. 2021, arXiv:2012.14193). Only the likelihood counts: no class weights, no label smoothing. Modules run in eval
    mode. For a sequence model one sample is one sequence, and its log-likelihood is the sum over its tokens.

    Reports `trace` with its standard error over samples (of data and labels), and `loss`, the mean negative
    log-likelihood of the true targets over target elements, so that runs can be compared at equal loss. The summary
    has `trace_max`, `explosion_ratio` (the largest trace divided by the first one) and `trace_max_at_loss`, the largest
    trace until the loss first fell to `at_loss`. The trace at the crossing is interpolated linearly between the two
    measurements around it. `trace_max_at_loss` is absent if the loss has not fallen so far, or if there is no loss.

    Cost: about one forward and one backward pass over the samples; with `labels="exact"` one backward pass less than
    there are classes.

    Args:
        labels: "sampled" draws one label per sample from the model; "exact" takes all labels with their probabilities;
            "empirical" takes the true labels, a different quantity with other keys (`empirical_trace`).
        per_layer: Also report ``layer/<name>``, the contribution of each layer's parameters.
        explosion_factor: Raise the flag `explosion` when the trace exceeds this many times the first one; None for
            never. No universal value exists.
        at_loss: The loss for `trace_max_at_loss`; None for half of the first measured loss, if that is positive. Set a
            number if runs start at different losses.
        likelihood: "auto" recognises integer targets with class logits as "categorical". Set "bernoulli" for
            independent labels and "gaussian" (unit variance) for regression.
        loss_fn: Only compared with the likelihood, to find out which labels count.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> FisherTrace(labels="exact", num_samples=128).num_samples
        128
    """

    defaults = ProbeArguments(schedule=LogSpacedSteps(12), name="fisher")
    readings = FISHER_TRACE
    panels = FISHER_TRACE_PANELS

    def __init__(
        self,
        *,
        labels: Labels = "sampled",
        per_layer: bool = False,
        explosion_factor: float | None = None,
        at_loss: float | None = None,
        likelihood: LikelihoodName = "auto",
        **shared: Unpack[PredictionArguments],
    ) -> None:
        super().__init__(**shared)
        check_choice("labels", labels, get_args(Labels))
        check_switch("per_layer", per_layer)
        check_number("explosion_factor", explosion_factor, above=0, optional=True)
        check_number("at_loss", at_loss, optional=True)
        check_choice("likelihood", likelihood, get_args(LikelihoodName))
        self.labels = labels
        self.per_layer = per_layer
        self.explosion_factor = explosion_factor
        self.at_loss = at_loss
        self.likelihood = likelihood
        self.quantity = "trace"
        if labels == "empirical":
            self.quantity = "empirical_trace"
            self.panels = EMPIRICAL_PANELS
        self.extremes = (peak_at_equal_loss(self.quantity, at_loss),)

    @property
    def price(self) -> Sequence[Price]:
        """One backward pass, or one for each class but the first."""
        if self.labels == "exact":
            return Price(forward=1), Price(backward=1, each="class but the first")
        return (Price(forward=1, backward=1),)

    def prepare(self, view: ModelView) -> None:
        """Check logits and likelihood, and choose for each layer the fastest method that gives the right norms."""
        check_logits(view)
        self._norms = SampleNorms(view, self.likelihood, self.labels, self.say, self.carried)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether a sample's logits, and so its gradient, do not depend on other samples."""
        return same_logits(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Average squared gradient norms of the log-likelihood over samples."""
        if not self._norms.suit(view):  # layers were changed, tied or unfrozen since
            self.prepare(view)
        planned = self._norms.planned(view)
        every = {name: row for row, name in enumerate(planned.names)}
        rows = {self.quantity: every}
        if self.per_layer:
            rows |= {f"layer/{layer}": own for layer, own in by_layer(every).items()}
        indices = [torch.tensor([*own.values()], device=view.device) for own in rows.values()]
        norms: list[Tensor] = []
        nlls: dict[int, Tensor] = {}
        for batch in view.batches():
            by_parameter, nlls[batch.index] = self._norms(planned, view, batch)
            norms.append(torch.stack([by_parameter[index].sum(0) for index in indices]))

        estimates = {key: MeanEstimate(**view.synced) for key in rows}
        values = on_host(torch.cat(norms, 1)) if norms else ()
        for estimate, own in zip(estimates.values(), values, strict=bool(norms)):
            estimate.update(own)
        trace = estimates.pop(self.quantity).compute()
        yield Scalar(self.quantity, trace.mean, trace.standard_error)
        total, count = view.of_all(nlls, shape=(2,)).sum(0).tolist()
        if count:
            yield Scalar("loss", total / count, detail=True)
        for key, estimate in estimates.items():
            yield Scalar(key, estimate.compute().mean)
        if self.explosion_factor is not None:
            yield explosion(trace.mean, self.history, f"{self.name}/{self.quantity}", self.explosion_factor)

    def summarize(self) -> dict[str, float]:
        """Largest trace so far, its ratio to the first, and the largest until the loss had fallen to `at_loss`."""
        return peaks(self.history, self.name, self.quantity, self.at_loss)
