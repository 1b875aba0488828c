"""A way round a barrier: a path of low loss between two ends, found by descent on the probe data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_probes.callbacks.paths.barriers import barriers_of, by_prefix, curves_of
from lightning_probes.callbacks.paths.batch_norm import loss_by_batch_statistics, recalibrated_buffers
from lightning_probes.callbacks.paths.ends import State
from lightning_probes.callbacks.paths.path import BatchNormMode
from lightning_probes.callbacks.paths.scores import Scorer, Scores
from lightning_probes.functional.curvature.hvp import gradient
from lightning_probes.functional.parameter_vector import to_dict, to_vector
from lightning_probes.functional.paths.bezier import bend, bezier
from lightning_probes.functional.paths.polyline import arc_lengths, place_on
from lightning_probes.functional.paths.string import string
from lightning_probes.metrics.mean_estimate import estimate_mean
from lightning_probes.probing.arguments import AnyData, ProbeArguments
from lightning_probes.probing.data.drawing import ProbeSet
from lightning_probes.probing.isolation.seeding import derived_seed
from lightning_probes.probing.price import Price
from lightning_probes.probing.schedules import AtFitEnd, Schedule
from lightning_probes.probing.values import check_choice, check_number, check_whole_number, in_short
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Flag, Result, Scalar

T = TypeVar("T", bound=AnyData)
PathKind: TypeAlias = Literal["linear", "bezier", "string"]
POINTS = 41
"""At which the loss on a path is measured, both ends included: pivots alone hide what lies between them."""
_AXIS = "share of the path's length (0 = this run, 1 = the other)"
_STILL_FALLS = 0.1
_HEIGHT_BATCHES = 4  # micro-batches by which a string looks for where it is high
_CHECKED = (0.25, 0.5, 0.75)
Path: TypeAlias = Callable[[float], Tensor]
"""A point of a path, as a vector, by a number from 0 to 1."""


@dataclass(frozen=True)
class Found:
    """A path, what it was when half of the steps were done, and what was spent on it in passes over the samples."""

    path: Path
    before: Path
    passes: float


class Descent:
    """The loss on the probe data as a function of a vector, and what was spent on it.

    A step uses one micro-batch, drawn in proportion to its size. The process that holds it computes, and all get the
    result: a path is the same on any number of processes.

    Args:
        view: The model and its data; the first probe set is used.
        like: The parameters that a vector stands for.
    """

    def __init__(self, view: ModelView, like: State) -> None:
        self._view, self._like, self._set = view, dict(like), view.probe_set()
        self._places = {batch.index: place for place, batch in enumerate(self._set.plan)}
        few = [batch for batch in self._set.plan if batch.index < _HEIGHT_BATCHES]
        few_set = ProbeSet(few, list(self._set.sizes[:_HEIGHT_BATCHES]), self._set.first)
        self._few = replace(view, data={next(iter(view.data)): few_set})
        self.samples = 0

    def gradient(self, vector: Tensor, step: int) -> Tensor:
        """The gradient on the micro-batch of a step."""
        chosen = torch.Generator().manual_seed(derived_seed(self._view.seed, self._view.step, 3, step))
        index = int(torch.multinomial(torch.tensor(self._set.sizes, dtype=torch.float), 1, generator=chosen))
        self.samples += self._set.sizes[index]
        slope = torch.zeros_like(vector)
        if index in self._places:
            batch = self._set.batches[self._places[index]]
            loss = partial(loss_by_batch_statistics, self._view, batch=batch)
            slope = gradient(loss, to_dict(vector, self._like))[1].to(vector)
        return self._view.sum_over_processes(slope)

    def height(self, vector: Tensor) -> float:
        """The loss on a few micro-batches."""
        self.samples += self._few.probe_set().num_samples
        return float(self._few.mean_loss(self.point(vector, self._few)))

    def point(self, vector: Tensor, view: ModelView | None = None) -> dict[str, Tensor]:
        """Parameters and re-estimated buffers at a vector."""
        params = to_dict(vector, self._like)
        return params | recalibrated_buffers(view or self._view, params)

    @property
    def passes(self) -> float:
        """What was spent, in passes over the samples."""
        return self.samples / self._set.num_samples


def with_path_defaults(kind: PathKind, shared: ProbeArguments[T]) -> ProbeArguments[T]:
    """Shared arguments with the defaults of a path, which needs more samples and is found at the end of the fit."""
    if not isinstance(kind, str) or kind == "linear":
        return shared
    return {"schedule": AtFitEnd(), "num_samples": 2048, **shared}


def check_path(
    kind: PathKind, steps: int, lr: float, schedule: Schedule | Sequence[Schedule], batch_norm: BatchNormMode
) -> None:
    """Check the arguments of a path. It is found only at the end of the fit.

    Raises:
        ValueError: If one is out of range; the message names it.
    """
    check_choice("path", kind, ("linear", "bezier", "string"))
    check_whole_number("path_steps", steps, least=1)
    check_number("path_lr", lr, above=0)
    if kind == "linear":
        return
    schedules = [schedule] if isinstance(schedule, Schedule) else schedule
    if not all(isinstance(each, AtFitEnd) for each in schedules):
        raise ValueError(
            f"path={kind!r} takes as long as a few hundred training steps, so it is found only at the end of the fit: "
            f"pass schedule=AtFitEnd(), got schedule={in_short(schedule)}"
        )
    if batch_norm == "eval":
        raise ValueError(f"path={kind!r} re-estimates BatchNorm everywhere: pass batch_norm='recalibrate'")


def price_of_path(kind: PathKind) -> list[Price]:
    """What a path takes besides the straight line."""
    if kind == "linear":
        return []
    points = POINTS + 2 * len(_CHECKED)
    return [
        Price(forward=points, copies=8),
        Price(forward=points, only="with BatchNorm, over the training samples"),
        Price(forward=1, backward=1, each="step of the path, over one micro-batch"),
        *([Price(forward=2, each="place where the string may be high, over four micro-batches")] * (kind == "string")),
    ]


def detour(
    view: ModelView, scorer: Scorer, start: State, end: State, kind: PathKind, steps: int, lr: float
) -> Iterator[Result]:
    """Find a path between two ends, and measure it.

    Args:
        view: The model and its data.
        scorer: Scores points.
        start: First end: real parameters by name, of which integer ones stay as they are now; running statistics are
            re-estimated everywhere.
        end: Last end.
        kind: "bezier" or "string".
        steps: Gradients to take, of one micro-batch each.
        lr: The learning rate.

    Yields:
        Under `path/`: the curves `loss` and `error`, `max_loss` (its standard error is over micro-batches) and
        `max_error`, the barriers, `length_over_chord` and `passes`; and the flag `not_converged`.
    """
    parameters = {name: p.detach() for name, p in view.module.named_parameters() if p.is_floating_point()}
    here, there = ({name: each[name].to(now) for name, now in parameters.items()} for each in (start, end))
    descent = Descent(view, here)
    vectors = to_vector(here), to_vector(there)
    found = (_curve if kind == "bezier" else _chain)(descent, *vectors, steps, lr, view)
    points = [number / (POINTS - 1) for number in range(POINTS)]
    lengths = arc_lengths(list(map(found.path, points)))
    positions = (lengths / lengths[-1]).numpy() if lengths[-1] > 0 else np.array(points)
    scores = scorer(view, (descent.point(found.path(at)) for at in points))
    yield from curves_of(scores, positions, _AXIS, "path/")
    yield from barriers_of(scores, positions, "path/", is_detail=True)
    yield from _highest(scores)
    chord = float(torch.linalg.vector_norm(vectors[1] - vectors[0]))
    yield Scalar("path/length_over_chord", float(lengths[-1]) / chord if chord else 1.0, detail=True)
    yield Scalar("path/passes", found.passes, detail=True)
    yield _still_falling(view, descent, found)


def _curve(descent: Descent, start: Tensor, end: Tensor, steps: int, lr: float, view: ModelView) -> Found:
    generator = torch.Generator().manual_seed(derived_seed(view.seed, view.step, 2))
    theta, before = bend(descent.gradient, start, end, max(1, steps // 2), lr, generator)
    return Found(partial(bezier, start, theta, end), partial(bezier, start, before, end), descent.passes)


def _chain(descent: Descent, start: Tensor, end: Tensor, steps: int, lr: float, view: ModelView) -> Found:
    strung = string(descent.gradient, descent.height, start, end, steps, lr)
    return Found(partial(place_on, strung.pivots), partial(place_on, strung.before), descent.passes)


def _highest(found: dict[str, Scores]) -> Iterator[Scalar]:
    first = next(iter(found.values()))
    for prefix, scores in by_prefix(found, "path/"):
        at = int(scores.loss.argmax())  # the first that is not a number, if there is one
        error = estimate_mean(scores.batch_losses[at], scores.sizes).standard_error
        yield Scalar(f"{prefix}max_loss", scores.loss[at], error, detail=scores is not first)
        if scores.accuracy is not None:
            yield Scalar(f"{prefix}max_error", float((1 - scores.accuracy).max()), detail=True)


def _still_falling(view: ModelView, descent: Descent, found: Found) -> Flag:
    """Whether the second half of the steps has still lowered the loss on the path, in which the learning rate falls."""
    before, after = (
        sum(float(view.mean_loss(descent.point(path(at)))) for at in _CHECKED) / len(_CHECKED)
        for path in (found.before, found.path)
    )
    fall = (before - after) / abs(before) if before else 0.0
    return Flag(
        "not_converged", fall > _STILL_FALLS, fall, _STILL_FALLS,
        f"the second half of the steps has lowered the loss on the path by {fall:.1%}: pass more path_steps=",
    )  # fmt: skip
