"""Rise of the loss if a share of the units of every layer is dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from typing_extensions import Unpack

from lightning_probes.callbacks.paths.batch_norm import batch_norms, check_recalibration
from lightning_probes.callbacks.paths.chain import has_bound
from lightning_probes.callbacks.paths.droppable import droppable_units
from lightning_probes.callbacks.paths.halves import (
    Case,
    Kept,
    check_halves,
    mean_over_halves,
    network,
    price_of_halves,
)
from lightning_probes.callbacks.paths.path import BatchNormMode
from lightning_probes.callbacks.paths.pictures import DROPOUT_STABILITY_PANELS
from lightning_probes.callbacks.paths.readings import DROPOUT_STABILITY
from lightning_probes.callbacks.paths.scores import Scorer, Scores
from lightning_probes.functional.units.dropping import random_kept
from lightning_probes.probing.arguments import PredictionArguments, ProbeArguments
from lightning_probes.probing.layers import layer_keys
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_names, check_switch
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result, Scalar


class DropoutStability(Probe):
    r"""Rise of the loss if half of the units of every layer are dropped.

    .. math:: L(\theta_K) - L(\theta)

    where in :math:`\theta_K` a random half :math:`K` of the units of each group is kept: the weights that read a
    dropped unit are 0, and those that read a kept one are multiplied by n/k for k of n kept units. A solution for which
    this is small is dropout-stable, and two such solutions are connected by a path of low loss (Kuditipudi et al. 2019,
    arXiv:1906.06247; wide networks trained by SGD are such solutions, Shevchenko and Mondelli 2020, arXiv:1912.10095).

    Units are found in the module itself: groups that can be exchanged without a change of the function. A residual
    stream, to which several modules write, is left out unless it is among `layers`. The run's config names what is left
    out. BatchNorm is re-estimated for each network, that with all units included.

    Reports:

    - `rise`: the mean over `halves` random halves; its standard error is over these halves, on the same samples.
    - `rise_best`: that of the best of them. The definition asks for one good half to exist, so this bounds it from
      above, by as much as `halves` tries find.
    - `suffix_max`: for the best half, the largest rise if only the layers from the i-th on are dropped, over all i.
    - `bound`: only for plain chains of layers with a loss that is convex in the logits, if half of the units are
      dropped and none are left out: the largest loss, on the probe samples, of a path to any other network whose bound
      is no higher.
    - `error_rise`: mean change of the share of wrong predictions, for classes.
    - `loss`: of the network with all units.
    - `layer/<name>`: with `per_layer`, the mean rise if only the units of this layer are dropped.

    Cost: `halves` + 1 forward passes, and one more for each layer but the first; with BatchNorm twice as many.

    Args:
        fraction: Share of the units of each group to drop.
        halves: How many random choices of units to try; the same ones at each event.
        rescale: Whether the weights of kept units are multiplied by n/k.
        layers: Names or globs of the groups to drop units of, as the run's config names them. None takes those that a
            single module computes, or all groups if there are none.
        per_layer: Whether to report each layer by itself, which takes `halves` passes for each.
        batch_norm: "recalibrate" re-estimates running statistics for each network; "eval" keeps those of training.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> DropoutStability(halves=20).fraction
        0.5
    """

    defaults = ProbeArguments(schedule=(LogSpacedSteps(2), AtFitEnd()), name="dropout")
    readings = DROPOUT_STABILITY
    panels = DROPOUT_STABILITY_PANELS

    def __init__(
        self,
        *,
        fraction: float = 0.5,
        halves: int = 8,
        rescale: bool = True,
        layers: str | Sequence[str] | None = None,
        per_layer: bool = False,
        batch_norm: BatchNormMode = "recalibrate",
        **shared: Unpack[PredictionArguments],
    ) -> None:
        super().__init__(**shared)
        check_halves(fraction, halves, rescale, batch_norm)
        if layers is not None:
            check_names("layers", layers)
        check_switch("per_layer", per_layer)
        self.fraction, self.halves, self.rescale = fraction, halves, rescale
        self.layers, self.per_layer, self.batch_norm = layers, per_layer, batch_norm

    @property
    def price(self) -> Sequence[Price]:
        """A pass for each network, and with BatchNorm one more to re-estimate it."""
        return price_of_halves(self.halves, self.per_layer, self.batch_norm)

    def prepare(self, view: ModelView) -> None:
        """Check that the loss can be replayed, find the units, and find out how to score logits."""
        if self.batch_norm == "recalibrate":
            check_recalibration(view)
        self._scorer = Scorer(view, self.say, self.carried)
        self._units = units = droppable_units(view, self.layers)
        self._has_bound = self.rescale and has_bound(view, units, self._halves(view)[0])
        names = {"units": [group.name for group in units.groups], "left_out": list(units.left_out)}
        self.recorded = {**type(self).recorded, **names}

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples and no BatchNorm statistics are estimated on micro-batches."""
        recalibrates = self.batch_norm == "recalibrate" and batch_norms(pairs)
        return not recalibrates and same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure the network with all units, and those without some."""
        layers, halves = self._units.layers, self._halves(view)
        parts = [layers, *([layer] for layer in layers if self.per_layer)]
        scores = self._score(view, [None, *((part, kept) for part in parts for kept in halves)])
        loss, (whole, *by_layer) = scores.loss[0], (scores.loss[1:] - scores.loss[0]).reshape(len(parts), -1)
        yield mean_over_halves("rise", whole)
        yield Scalar("rise_best", whole.min(), detail=True)
        best = halves[int(whole.argmin())]
        suffixes = [(layers[first:], best) for first in range(1, len(layers))]
        rises = self._score(view, suffixes).loss - loss if suffixes else []
        largest = np.max([whole.min(), *rises])  # nan stays nan
        yield Scalar("suffix_max", largest, detail=True)
        if self._has_bound:
            yield Scalar("bound", loss + np.maximum(0, largest), detail=True)
        yield Scalar("loss", loss, detail=True)
        if scores.accuracy is not None:
            yield mean_over_halves("error_rise", scores.accuracy[0] - scores.accuracy[1 : 1 + self.halves], detail=True)
        keys = layer_keys((layer.name for layer in layers), errors=True)
        for layer, rises in zip(layers, by_layer, strict=False):
            yield mean_over_halves(f"layer/{keys[layer.name]}", rises, detail=True)

    def _halves(self, view: ModelView) -> list[Kept]:
        groups = self._units.groups
        return [random_kept(groups, self.fraction, view.generator(number)) for number in range(self.halves)]

    def _score(self, view: ModelView, cases: Iterable[Case | None]) -> Scores:
        """Scores of the network, each time without some units of some layers."""
        (scores,) = self._scorer(view, (network(view, case, self.rescale, self.batch_norm) for case in cases)).values()
        return scores
