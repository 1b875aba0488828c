"""Loss and accuracy at points in parameter space, on every probe set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.functional.likelihood import Categorical
from lightning_probes.probing.checks import check_loss, two_passes
from lightning_probes.probing.likelihoods import likelihood_of
from lightning_probes.probing.processes import is_out_of_memory
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.skipped import leave_out_skipped
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Loss and accuracy of one probe set at each point of a path.

    Attributes:
        batch_losses: Loss of every micro-batch on all processes, shape `(points, micro-batches)`, float64.
        sizes: Samples in each micro-batch.
        batch_correct: Correctly predicted targets in each micro-batch, shape `(points, micro-batches)`, float64; None
            if it is not a classification.
        batch_targets: Targets in each micro-batch, likewise.
    """

    batch_losses: Tensor
    sizes: Sequence[int]
    batch_correct: Tensor | None = None
    batch_targets: Tensor | None = None

    @property
    def loss(self) -> FloatArray:
        """Mean over samples, shape `(points,)`."""
        return np.asarray(np.average(self.batch_losses.numpy(), axis=1, weights=self.sizes))

    @property
    def accuracy(self) -> FloatArray | None:
        """Share of correctly predicted targets, shape `(points,)`; None if it is not a classification."""
        if self.batch_correct is None or self.batch_targets is None:
            return None
        return np.asarray((self.batch_correct.sum(1) / self.batch_targets.sum(1)).numpy())


class _Found(NamedTuple):
    """Results of this process at a point, by micro-batch: the loss, and the numbers of correct and of all targets."""

    losses: dict[int, Tensor]
    counts: dict[int, Tensor]


class Scorer:
    """Scores points on all probe sets of a view; made once, before the first optimizer step.

    Args:
        view: The model and its data.
        say: Reports what is left out.
        carried: The probe's storage, which keeps the reading of targets.
        may_leave_out: A probe set that the user did not choose; it is left out if its loss can't be replayed.

    Raises:
        MisconfigurationException: If the loss can't be replayed on a probe set.
    """

    def __init__(
        self, view: ModelView, say: Speaker, carried: dict[str, Any], may_leave_out: str | None = None
    ) -> None:
        sets = [split for split in view.data if _has_loss(view, split, say, split == may_leave_out)]
        for split in sets:
            leave_out_skipped(view, split)
        self._classes = {split: _classes_of(view, split, say, carried) for split in sets}

    def __call__(self, view: ModelView, points: Iterable[Mapping[str, Tensor]]) -> dict[str, Scores]:
        """The scores of points, by probe set.

        Args:
            view: The current model, on the same data.
            points: Parameters (and buffers) by name; only one point is in memory at a time. Cost: one forward pass over
                every probe set for each point.
        """
        found: dict[str, list[_Found]] = {split: [] for split in self._classes}
        for point in points:
            for split in found:
                found[split].append(self._evaluate(view, point, split))
        return {split: self._over_processes(view, at_points, split) for split, at_points in found.items()}

    def correct(self, view: ModelView, logits: Tensor, targets: Tensor | None) -> Tensor | None:
        """Numbers of correct and of all predictions of the first probe set, shape `(2,)`; None without classes."""
        classes = self._classes.get(next(iter(view.data)))
        if classes is None or targets is None:
            return None
        return torch.stack([*classes.accuracy_counts(logits, targets)])

    def _evaluate(self, view: ModelView, point: Mapping[str, Tensor], split: str) -> _Found:
        losses: dict[int, Tensor] = {}
        counts: dict[int, Tensor] = {}
        classes = self._classes[split]
        for batch in view.batches(split):
            if classes is None:
                losses[batch.index] = view.detached.loss(point, batch)
                continue
            losses[batch.index], logits, targets = view.detached.loss_and_logits(point, batch)
            assert targets is not None
            counts[batch.index] = torch.stack([*classes.accuracy_counts(logits, targets)])
        return _Found(losses, counts)

    def _over_processes(self, view: ModelView, found: Sequence[_Found], split: str) -> Scores:
        def of_all(own: Sequence[Mapping[int, Tensor]], *shape: int) -> Tensor:
            by_batch = {index: torch.stack([point[index] for point in own]) for index in own[0]}
            return view.of_all(by_batch, split, (len(own), *shape)).transpose(0, 1)

        losses, sizes = of_all([point.losses for point in found]), view.probe_set(split).sizes
        if self._classes[split] is None:
            return Scores(losses, sizes)
        return Scores(losses, sizes, *of_all([point.counts for point in found], 2).unbind(-1))


def _has_loss(view: ModelView, split: str, say: Speaker, may_leave_out: bool) -> bool:
    try:
        check_loss(view, split)
    except MisconfigurationException as error:
        if not may_leave_out:
            raise
        say.info(f"validation data is left out: {error}")
        return False
    return True


def _classes_of(view: ModelView, split: str, say: Speaker, carried: dict[str, Any]) -> Categorical | None:
    """The likelihood that scores predictions; None if there are no classes, or the loss uses other logits."""
    batch = view.probe_set(split).first
    try:
        two_passes(view, lambda either: either.logits(batch)[0])
        logits, targets = view.detached.logits(batch)
    except Exception as error:  # forward may not support such a batch
        if view.objective.predict_fn is not None or is_out_of_memory(error):
            raise
        log.debug("%s: no accuracy on %s data: %s", say.name, split, error)
        return None
    _, found, _ = view.detached.loss_and_logits({}, batch)
    if found.shape != logits.shape or not torch.allclose(
        found.to(logits), logits, rtol=1e-4, atol=1e-6, equal_nan=True
    ):
        say.info(f"no accuracy on {split} data, because training_step predicts on other inputs than the batch's")
        return None
    try:
        classes = likelihood_of(view, "auto", logits, targets, say, carried, split)
    except ValueError as error:  # predict_fn may be shared by all probes and belong to a regression
        log.debug("%s: no accuracy on %s data: %s", say.name, split, error)
        return None
    return classes if isinstance(classes, Categorical) else None
