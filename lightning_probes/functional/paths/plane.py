"""A plane in parameter space: its points, and the plane through three of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.paths.trajectory import combined, differences_gram
from lightning_probes.functional.wide import on_host

_COLLINEAR = 1e-10  # squared sine of the angle at the origin, below which float32 weights are on one line


@dataclass(frozen=True)
class Plane:
    """The points origin + x first + y second.

    Args:
        origin: Parameters by name.
        first: Direction of the x-axis, with some of the names of `origin`; the others do not move.
        second: Direction of the y-axis, with the same names.

    Example:
        >>> plane = Plane({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])})
        >>> plane.at(2.0, 3.0)
        {'w': tensor([2., 3.])}
    """

    origin: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """The parameters that move, at a point; at (0, 0) those of the origin, bit for bit."""
        if x == y == 0:
            return {name: self.origin[name] for name in self.first}
        return {
            name: torch.add(torch.add(self.origin[name], first, alpha=x), self.second[name], alpha=y)
            for name, first in self.first.items()
        }

    def to(self, device: torch.device) -> Plane:
        """The same plane on a device."""
        moved = ({name: tensor.to(device) for name, tensor in each.items()} for each in vars(self).values())
        return Plane(*moved)


def plane_through(
    origin: Mapping[str, Tensor], first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[Plane, Tensor]:
    """The plane through three points, by Gram-Schmidt: unit vectors, the x-axis from the first point to the second.

    Args:
        origin: The point at (0, 0).
        first: A point on the x-axis, with the names and shapes of `origin`.
        second: A point with a positive y.

    Returns:
        The plane, and the coordinates of the three points, shape `(3, 2)`, float64, on the CPU.

    Raises:
        ValueError: If the points are on one line.

    Example:
        >>> points = ({"w": torch.tensor(each)} for each in ([0.0, 0.0], [2.0, 0.0], [1.0, 3.0]))
        >>> plane_through(*points)[1]
        tensor([[0., 0.],
                [2., 0.],
                [1., 3.]], dtype=torch.float64)
    """
    points: Sequence[Mapping[str, Tensor]] = (first, second)
    gram = differences_gram(points, origin)
    a, b, c = float(gram[0, 0]), float(gram[0, 1]), float(gram[1, 1])
    height = c - b * b / a if a > 0 else 0.0
    if not height > _COLLINEAR * c:
        raise ValueError("the three points are on one line, or two of them are equal, so that they span no plane")
    along, up = a**0.5, height**0.5
    axes = on_host([1 / along, -b / (a * up), 0.0, 1 / up]).view(2, 2)
    plane = Plane(origin, *combined(points, origin, axes))
    return plane, on_host([0.0, 0.0, along, 0.0, b / along, up]).view(3, 2)
