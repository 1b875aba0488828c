"""Which plane through parameter space is looked at, and on which grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.callbacks.paths.real import check_real
from lightning_probes.callbacks.paths.saved_points import (
    SavedPoint,
    SavedStates,
    check_points,
    given_points,
    own_points,
)
from lightning_probes.functional.paths.directions import random_direction
from lightning_probes.functional.paths.plane import Plane, plane_through
from lightning_probes.functional.paths.trajectory import (
    combined,
    components,
    differences_gram,
    explained_by_random_walk,
)
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray, Scalar

Directions: TypeAlias = Literal["random", "trajectory", "checkpoints"]


@dataclass(frozen=True)
class Grid:
    """A plane, the points on it at which the loss is evaluated, and what is drawn over them.

    Attributes:
        plane: The plane.
        x: Positions along its first direction.
        y: Positions along its second direction.
        path: Points to draw, shape `(points, 2)`.
        path_labels: What they are called.
        labels: Of the two axes.
        scalars: What is known of the plane itself.
    """

    plane: Plane
    x: FloatArray
    y: FloatArray
    path: FloatArray
    path_labels: Sequence[str]
    labels: tuple[str, str]
    scalars: Sequence[Scalar] = ()

    def __len__(self) -> int:
        return 1 + len(self.x) * len(self.y)

    def points(self) -> Iterator[dict[str, Tensor]]:
        """The parameters at the origin, and then at each point, row by row."""
        yield self.plane.at(0.0, 0.0)
        yield from (self.plane.at(x, y) for y in self.y.tolist() for x in self.x.tolist())


def check_directions(view: ModelView, directions: Directions, sources: SavedStates | None, say: Speaker) -> None:
    """There is a plane to look at, before training time is spent.

    Raises:
        MisconfigurationException: If there is none; names `directions` or `checkpoints`.
        ValueError: If checkpoints that were passed can't be used; names `checkpoints`.
    """
    if directions != "random":
        check_real(view, "planes through checkpoints are laid for", "directions='random'")
        check_points(view, sources, 2, 3 if directions == "checkpoints" else math.inf, say)
    elif all(p.ndim < 2 for p in view.params.values()):
        raise MisconfigurationException(
            "no trainable parameter has filters (two dims or more), which give random directions their length: pass "
            "directions='trajectory'"
        )


def find_grid(
    view: ModelView, directions: Directions, sources: SavedStates | None, resolution: int, span: float, say: Speaker
) -> Grid | None:
    """The grid on a plane; None if there is no plane yet, which is said.

    Files are read in the first process alone.

    Raises:
        MisconfigurationException: If there is no plane, and this is a single measurement.
    """
    if directions == "random":
        return random_grid(view, resolution, span)
    lay = trajectory_grid if directions == "trajectory" else three_point_grid

    def make() -> Grid | str:
        points = own_points(view, say) if sources is None else given_points(sources, view.module, say)
        if len(points) < 2:
            found = "there are fewer than two checkpoints before this step, so there is no plane: save more of them"
            return found
        try:
            return lay(view, points, resolution, span)
        except ValueError as error:
            found = f"there is no plane through the checkpoints ({error}): pass other ones as checkpoints="
            return found

    found = view.processes.from_first(make() if view.processes.rank == 0 else "")
    if not isinstance(found, str):
        return replace(found, plane=found.plane.to(view.device))
    if view.run.is_single:
        raise MisconfigurationException(found)
    say.warn(found)
    return None


def along_random(view: ModelView) -> Iterator[dict[str, Tensor]]:
    """Random directions, filter-normalised at the current parameters; each event gets the same ones.

    They are drawn for all parameters, so that thawing some does not change the directions of the others.
    """
    generator, trained = view.generator(0), view.params
    everything = {name: p.detach() for name, p in view.module.named_parameters() if not _is_counted(p)}
    while True:
        drawn = random_direction(everything, generator)
        yield {name: direction for name, direction in drawn.items() if name in trained}


def random_grid(view: ModelView, resolution: int, span: float) -> Grid:
    """A square about the current parameters, along two random directions."""
    directions = along_random(view)
    plane = Plane(view.params, next(directions), next(directions))
    middle = (resolution - 1) / 2
    positions = np.asarray(span * (np.arange(resolution) - middle) / middle, dtype=np.float64)  # 0 is exact
    labels = ("first direction (filter norms)", "second direction (filter norms)")
    return Grid(plane, positions, positions, np.zeros((1, 2)), (_present(view),), labels)


def trajectory_grid(view: ModelView, points: Sequence[SavedPoint], resolution: int, span: float) -> Grid:
    """A rectangle about saved states and the current parameters, along their first two principal components.

    Raises:
        ValueError: If all of these are on one line.
    """
    origin, states = _movable(view), [point.state for point in points]
    gram = differences_gram(states, origin)
    away = gram.diagonal().nonzero().flatten().tolist()  # the last checkpoint may be that of this very step
    gram, states = gram[away][:, away], [states[k] for k in away]
    found = components(gram)
    plane = Plane(origin, *combined(states, origin, found.weights))
    path = np.concatenate([found.coordinates.numpy(), np.zeros((1, 2))])
    first, second = found.explained[:2].tolist()
    scalars = (
        Scalar("explained_variance", first + second),
        Scalar("explained_variance_random_walk", float(explained_by_random_walk(gram)[:2].sum())),
    )
    labels = (f"first component ({first:.1%} of squared distance)", f"second component ({second:.1%})")
    names = [*(points[k].label for k in away), _present(view)]
    x, y = _about(path, resolution, span)
    return Grid(plane, x, y, path, names, labels, scalars)


def three_point_grid(view: ModelView, points: Sequence[SavedPoint], resolution: int, span: float) -> Grid:
    """A rectangle about three states: those given, or two of them and the current parameters.

    Raises:
        ValueError: If they are on one line.
    """
    now = _movable(view)
    corners: list[tuple[str, Mapping[str, Tensor]]] = [(point.label, point.state) for point in points]
    if len(corners) == 2:
        corners.insert(0, (_present(view), now))
    origin = {name: corners[0][1][name].to(tensor) for name, tensor in now.items()}
    plane, coordinates = plane_through(origin, corners[1][1], corners[2][1])
    path, names = np.roll(coordinates.numpy(), -1, axis=0), [label for label, _ in (*corners[1:], corners[0])]
    labels = (f"from {names[-1]} to {names[0]} (distance of weights)", f"towards {names[1]} (distance of weights)")
    x, y = _about(path, resolution, span)
    return Grid(plane, x, y, path, names, labels)


def _about(path: FloatArray, resolution: int, span: float) -> Iterator[FloatArray]:
    """Positions of an axis each, 1 + span times as wide as the points."""
    for along in path.T:
        margin = span * (along.max() - along.min()) / 2
        yield np.linspace(along.min() - margin, along.max() + margin, resolution)


def _movable(view: ModelView) -> dict[str, Tensor]:
    """All real parameters on the CPU, also frozen ones: a checkpoint may have other values of these."""
    return {name: p.detach().cpu() for name, p in view.module.named_parameters() if p.is_floating_point()}


def _is_counted(parameter: Tensor) -> bool:
    return not (parameter.is_floating_point() or parameter.is_complex())


def _present(view: ModelView) -> str:
    return "now" if view.run.is_single else f"step {view.step}"
