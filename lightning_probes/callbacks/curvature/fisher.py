"""The contribution of each sample to the Fisher trace: the squared gradient norm of its log-likelihood."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.functional.likelihood import LikelihoodName, exact_passes
from lightning_probes.functional.per_sample.squared_norms import PlannedNorms, choose_methods, owners_of, squared_norms
from lightning_probes.functional.wide import widest
from lightning_probes.probing.checks import blaming_derivatives, no_gradient_of_logits
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.likelihoods import likelihood_of
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView

Labels: TypeAlias = Literal["sampled", "exact", "empirical"]

_MANY_PASSES = 100


class SampleNorms:
    """Squared gradient norms of the log-likelihood, by parameter and sample.

    When created, it chooses for each layer the fastest method that gives the right norms on the first micro-batch.

    Args:
        view: The model.
        likelihood: The likelihood of its logits, or "auto".
        labels: The labels to score: drawn from the model, all of them with their probabilities, or the true ones.
        say: Reports how many passes exact labels take, if those are many.
        carried: The probe's storage, which keeps the reading of targets.

    Raises:
        MisconfigurationException: If there are no such labels, or the logits can't be differentiated.
        ValueError: If the likelihood does not suit the logits and targets.
    """

    def __init__(
        self, view: ModelView, likelihood: LikelihoodName, labels: Labels, say: Speaker, carried: dict[str, Any]
    ) -> None:
        batch = view.probe_set().first
        logits, targets = view.detached.logits(batch)
        self._likelihood, self._labels = likelihood_of(view, likelihood, logits, targets, say, carried), labels
        if labels == "empirical" and targets is None:
            raise MisconfigurationException(
                "labels='empirical' needs targets: pass predict_fn= that returns (logits, targets)"
            )
        if labels == "exact":
            next(iter(self._likelihood.exact_scores(logits, targets)), None)
            _announce_passes(exact_passes(self._likelihood, logits), len(view.probe_set().sizes), say)
        with blaming_derivatives(no_gradient_of_logits):
            self._methods = choose_methods(view.module, lambda: view.logits(batch)[0])
        self._chosen_for = owners_of(view.module)

    def suit(self, view: ModelView) -> bool:
        """Whether the model still has the same layers and trainable parameters."""
        return self._chosen_for == owners_of(view.module)

    def planned(self, view: ModelView) -> PlannedNorms:
        """The executable plan, which all micro-batches of an event share."""
        return PlannedNorms(view.module, self._methods, self._chosen_for)

    def __call__(self, planned: PlannedNorms, view: ModelView, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Squared gradient norms of a micro-batch, (parameters, samples), and the sum and count of its targets' NLL.

        Cost: one forward and one backward pass; for exact labels one backward pass less than there are classes.
        """
        targets: Tensor | None = None
        nll = torch.zeros(2, dtype=widest(view.device), device=view.device)

        def forward() -> Tensor:
            nonlocal targets
            logits, targets = view.logits(batch)
            return logits

        def scores(logits: Tensor) -> Iterable[Tensor]:
            logits = logits.detach()
            if targets is not None:
                nll[:] = torch.stack(
                    [torch.as_tensor(part, device=view.device) for part in self._likelihood.nll(logits, targets)]
                )
            return self._scores(view, batch, logits, targets)

        return squared_norms(planned, forward, scores).sum(0), nll

    def _scores(self, view: ModelView, batch: MicroBatch, logits: Tensor, targets: Tensor | None) -> Iterable[Tensor]:
        """Gradients of the log-likelihood with respect to the logits; their squared parameter gradients add up."""
        if self._labels == "exact":
            return self._likelihood.exact_scores(logits, targets)
        if self._labels == "empirical":
            assert targets is not None
            return [self._likelihood.score(logits, targets)]
        labels = self._likelihood.sample(logits, view.generator(view.step, batch.index), targets)
        return [self._likelihood.score(logits, labels)]


def _announce_passes(passes: int, batches: int, say: Speaker) -> None:
    if passes >= _MANY_PASSES:
        say.info(
            f"labels='exact' takes {passes:,} backward passes for each of {batches} micro-batches, "
            f"{passes * batches:,} at every measurement; labels='sampled' takes {batches}"
        )
