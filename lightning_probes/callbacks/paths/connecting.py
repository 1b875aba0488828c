"""What is measured between two ends: the points on the line, and the results that come of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lightning_probes.callbacks.paths.barriers import LOSS, barriers_of, curves_of
from lightning_probes.callbacks.paths.batch_norm import batch_norms
from lightning_probes.callbacks.paths.ends import State
from lightning_probes.callbacks.paths.path import BatchNormMode, Line
from lightning_probes.callbacks.paths.scores import Scorer, Scores
from lightning_probes.callbacks.paths.shape import largest_rise
from lightning_probes.functional.paths.interpolation import alphas
from lightning_probes.probing.price import Price
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Curve, FloatArray, Result, Scalar

_AXIS = "alpha (0 = this run, 1 = the other)"
_CROSSING = "alpha (0 = initialisation of one run, 1 = the other run)"


@dataclass(frozen=True)
class Connecting:
    """Measures lines between states of a model.

    Args:
        view: The model and its data.
        scorer: Scores points.
        num_alphas: Points on a line, both ends included.
        batch_norm: As for `Line`.
    """

    view: ModelView
    scorer: Scorer
    num_alphas: int
    batch_norm: BatchNormMode

    def line(self, start: State, end: State, prefix: str = "") -> Iterator[Result]:
        """Curves, barriers and length of the line between two ends; the gap of BatchNorm at the first of them."""
        line = Line(self.view, start, end, self.batch_norm)
        found = self._score(line)
        yield from curves_of(found, self._positions, _AXIS, prefix)
        yield from barriers_of(found, self._positions, prefix)
        yield Scalar(f"{prefix}distance", line.distance()[0], detail=True)
        if not prefix and self.batch_norm == "recalibrate" and batch_norms(self.view):
            at_start = float(next(iter(found.values())).loss[0])
            yield Scalar("bn_gap", at_start - float(self.view.mean_loss({})), detail=True)

    def rise(self, start: State, end: State, key: str) -> Iterator[Result]:
        """The largest rise on a line from an initialisation, and its loss."""
        scores = next(iter(self._score(Line(self.view, start, end, self.batch_norm)).values()))
        rise = largest_rise(scores)
        yield Curve(f"{key}/loss", self._positions, scores.loss, _CROSSING, LOSS)
        yield Scalar(f"{key}/max_rise", rise.mean, rise.standard_error)

    def _score(self, line: Line) -> dict[str, Scores]:
        return self.scorer(self.view, map(line.at, self._positions.tolist()))

    @property
    def _positions(self) -> FloatArray:
        positions: FloatArray = alphas(self.num_alphas).numpy()
        return positions


def price_of_lines(num_alphas: int, crossing: int, batch_norm: BatchNormMode) -> list[Price]:
    """What the line between two runs takes, and how many more from initialisations."""
    items = [Price(forward=num_alphas, copies=2)]
    if crossing:
        items.append(Price(forward=num_alphas * crossing, only="if the initialisation is known"))
    if batch_norm == "recalibrate":
        points = num_alphas * (1 + crossing) + 1
        items.append(Price(forward=points, only="with BatchNorm, over the training samples"))
    return items
