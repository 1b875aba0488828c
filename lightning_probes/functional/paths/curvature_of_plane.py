"""How far a surface of losses over a plane is from convex, from its curvatures by central differences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_probes.functional.wide import on_host


def principal_curvatures(values: Tensor, x_step: float, y_step: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the Hessian of a surface at the inner points of its grid, by central differences.

    Args:
        values: Shape `(rows, columns)`, at least 3 x 3.
        x_step: Distance between columns.
        y_step: Distance between rows.

    Returns:
        The smaller and the larger one, each of shape `(rows - 2, columns - 2)`, float64, on the CPU.

    Raises:
        ValueError: If the grid has no inner point.

    Example:
        >>> x = torch.linspace(-1, 1, 5)
        >>> low, high = principal_curvatures(x[None] ** 2 - x[:, None] ** 2, 0.5, 0.5)
        >>> low[0, 0], high[0, 0]
        (tensor(-2., dtype=torch.float64), tensor(2., dtype=torch.float64))
    """
    z = on_host(values)
    if z.ndim != 2 or min(z.shape) < 3:
        raise ValueError(f"curvatures need a grid of at least 3 x 3 points, got shape {tuple(z.shape)}")
    inner = z[1:-1, 1:-1]
    xx = (z[1:-1, 2:] - 2 * inner + z[1:-1, :-2]) / x_step**2
    yy = (z[2:, 1:-1] - 2 * inner + z[:-2, 1:-1]) / y_step**2
    xy = (z[2:, 2:] - z[2:, :-2] - z[:-2, 2:] + z[:-2, :-2]) / (4 * x_step * y_step)
    middle, half = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    return middle - half, middle + half


def nonconvexity(values: Tensor, x_step: float, y_step: float, rounding: float = 2**-23) -> float:
    """Mean over the inner points of a grid of the negative curvature over the largest one in magnitude.

    The map of ``|lambda_min / lambda_max|`` of Li et al. 2018 (arXiv:1712.09913), in the plane and as one number: 0 for
    a convex surface, 1 for one that bends down at least as much as up everywhere. It does not depend on the unit of the
    loss.

    Args:
        values: As for `principal_curvatures`.
        x_step: As for `principal_curvatures`.
        y_step: As for `principal_curvatures`.
        rounding: Relative rounding error of the values, by default that of float32. What it explains of a curvature
            counts as none.

    Returns:
        A number in [0, 1]; nan if a value is not finite.

    Raises:
        ValueError: As `principal_curvatures`.

    Example:
        >>> squares = torch.linspace(-1, 1, 5) ** 2
        >>> bowl, saddle = squares[None] + squares[:, None], squares[None] - squares[:, None]
        >>> nonconvexity(bowl, 0.5, 0.5), nonconvexity(saddle, 0.5, 0.5)
        (0.0, 1.0)
    """
    low, high = principal_curvatures(values, x_step, y_step)
    if not bool(on_host(values).isfinite().all()):
        return math.nan
    around = torch.nn.functional.max_pool2d(on_host(values).abs()[None], 3, 1)[0]
    noise = 4 * rounding * around / min(abs(x_step), abs(y_step)) ** 2
    down, most = -low.clamp(max=0), torch.maximum(low.abs(), high.abs())
    share = torch.where(down > noise, down / most, 0.0)
    return float(share.mean())


def flat_share(values: Tensor, centre: float, rise: float = 1.0) -> float:
    """Share of the points of a grid at which a surface has not risen by `rise` above its centre.

    Args:
        values: Shape `(rows, columns)`.
        centre: The value at the centre.
        rise: In the unit of the values.

    Returns:
        A number in [0, 1]; nan if a value or the centre is not finite.

    Example:
        >>> flat_share(torch.tensor([[0.0, 0.5], [1.5, 4.0]]), centre=0.0)
        0.5
    """
    surface = on_host(values)
    if not bool(surface.isfinite().all()) or not math.isfinite(centre):
        return math.nan
    return float(on_host(surface < centre + rise).mean())
