"""What is measured between two ends: the points on the line, and the results that come of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_probes.callbacks.paths.aligning import Align, aligned
from lightning_probes.callbacks.paths.barriers import LOSS, barriers_of, curves_of
from lightning_probes.callbacks.paths.batch_norm import batch_norms, recalibrated_buffers
from lightning_probes.callbacks.paths.ends import State, end_of, start_of
from lightning_probes.callbacks.paths.path import BatchNormMode, Line
from lightning_probes.callbacks.paths.repair import repairable, repaired, spreads
from lightning_probes.callbacks.paths.scores import Scorer, Scores
from lightning_probes.callbacks.paths.shape import largest_rise
from lightning_probes.functional.paths.interpolation import alphas
from lightning_probes.functional.units.groups import Group
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

    def line(self, start: State, end: State) -> Iterator[Result]:
        """Curves, barriers and length of the line between two ends; the gap of BatchNorm at the first of them."""
        line = Line(self.view, start, end, self.batch_norm)
        found = self._score(map(line.at, self._positions.tolist()))
        yield from self._described(found, "")
        yield Scalar("distance", line.distance()[0], detail=True)
        if self.batch_norm == "recalibrate" and batch_norms(self.view):
            at_start = float(next(iter(found.values())).loss[0])
            yield Scalar("bn_gap", at_start - float(self.view.mean_loss({})), detail=True)

    def matched(
        self, start: State, end: State, groups: Sequence[Group], align: Align, repair: bool, carried: dict[str, Any]
    ) -> Generator[Result, None, dict[str, Tensor]]:
        """The same for the other end with its units matched, under `aligned/`, and repaired, under `repaired/`.

        Returns:
            That end.
        """
        matched = aligned(self.view, start, end, groups, align, self.batch_norm, carried)
        line = Line(self.view, start, matched.state, self.batch_norm)
        yield from self._described(self._score(map(line.at, self._positions.tolist())), "aligned/")
        yield Scalar("aligned/distance", line.distance()[0], detail=True)
        yield Scalar("aligned/moved_units", matched.moved_units, detail=True)
        if repair:
            yield from self._described(self._score(self._repaired(line, groups)), "repaired/")
        return matched.state

    def crossing(self, here: State, there: State, ends: Mapping[str, State], cross: bool) -> Iterator[Result]:
        """The largest rise on the line from each initialisation that is known to the other run."""
        if cross and (start := start_of(self.view)):
            yield from self._rise(start, there, "init_to_other")
        if ends["other_init"]:
            yield from self._rise(end_of(self.view, ends["other_init"]), here, "other_init_to_run")

    def _rise(self, start: State, end: State, key: str) -> Iterator[Result]:
        line = Line(self.view, start, end, self.batch_norm)
        scores = next(iter(self._score(map(line.at, self._positions.tolist())).values()))
        rise = largest_rise(scores)
        yield Curve(f"{key}/loss", self._positions, scores.loss, _CROSSING, LOSS)
        yield Scalar(f"{key}/max_rise", rise.mean, rise.standard_error)

    def _repaired(self, line: Line, groups: Sequence[Group]) -> Iterator[dict[str, Tensor]]:
        """The points of a line with the outputs of units as spread as between the ends; both ends as they are."""
        layers = repairable(self.view, groups)
        here, there = (spreads(self.view, line.at(alpha), layers) for alpha in (0.0, 1.0))
        for alpha in self._positions.tolist():
            point = line.at(alpha)
            if 0 < alpha < 1:
                point = repaired(self.view, point, {name: here[name].towards(there[name], alpha) for name in here})
                if self.batch_norm == "recalibrate":  # what BatchNorm sees is scaled now
                    point |= recalibrated_buffers(self.view, point)
            yield point

    def _score(self, points: Iterator[Mapping[str, Tensor]]) -> dict[str, Scores]:
        return self.scorer(self.view, points)

    def _described(self, found: Mapping[str, Scores], prefix: str) -> Iterator[Result]:
        yield from curves_of(found, self._positions, _AXIS, prefix)
        yield from barriers_of(found, self._positions, prefix)

    @property
    def _positions(self) -> FloatArray:
        positions: FloatArray = alphas(self.num_alphas).numpy()
        return positions


def price_of_lines(
    num_alphas: int, align: Align | None, repair: bool, crossing: int, batch_norm: BatchNormMode
) -> list[Price]:
    """What the lines between two runs take, and some from initialisations."""
    lines = 1 + int(align is not None) + int(repair)
    items = [Price(forward=num_alphas * lines, copies=2 + int(align is not None))]
    if crossing:
        items.append(Price(forward=num_alphas * crossing, only="if the initialisation is known"))
    if align is not None:
        matching = 5 + repair * (num_alphas + 2)
        items.append(Price(forward=matching, only="to match units and repair outputs, over the training samples"))
    if batch_norm == "recalibrate":
        points = num_alphas * (lines + repair + crossing) + 5
        items.append(Price(forward=points, only="with BatchNorm, over the training samples"))
    return items
