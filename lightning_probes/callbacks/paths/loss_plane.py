"""The loss on a plane through parameter space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from typing_extensions import Unpack

from lightning_probes.callbacks.paths.batch_norm import batch_norms, check_recalibration
from lightning_probes.callbacks.paths.kinks import measured_gap, why_no_gap
from lightning_probes.callbacks.paths.landscape import landscape
from lightning_probes.callbacks.paths.path import BatchNormMode
from lightning_probes.callbacks.paths.pictures import LOSS_PLANE_HEADLINES, LOSS_PLANE_PANELS
from lightning_probes.callbacks.paths.planes import Directions, check_directions, find_grid
from lightning_probes.callbacks.paths.readings import LOSS_PLANE
from lightning_probes.callbacks.paths.saved_points import SavedStates, check_sources
from lightning_probes.functional.finite import are_finite
from lightning_probes.probing.arguments import LossArguments, ProbeArguments
from lightning_probes.probing.checks import check_loss
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.schedules import AtFitEnd
from lightning_probes.probing.skipped import leave_out_skipped
from lightning_probes.probing.values import check_choice, check_number, check_whole_number
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import Panel
from lightning_probes.results import Result, Scalar


class LossPlane(Probe):
    r"""Loss on a grid over a plane through parameter space, and how far it is from convex there.

    .. math:: f(a, b) = L(\theta + a \, d_1 + b \, d_2)

    - `directions="random"`: Gaussian directions, each filter as long as that of the weights, the same at every event
      (Li et al. 2018, arXiv:1712.09913). Biases and scales of normalisation layers do not move.
    - `directions="trajectory"`: the first two principal components of the saved checkpoints about the current weights,
      with the way of training drawn over them.
    - `directions="checkpoints"`: the plane through two checkpoints and the current weights, or through three.

    Reports:

    - `nonconvexity`: negative curvature over the largest one in magnitude, by central differences, mean over the inner
      points of the grid: 0 if the surface is convex, 1 if it bends down at least as much as up everywhere.
    - `flat_share`: share of the grid with a loss below that of the centre + 1, in the unit of the loss.
    - `kink_gap`: ``|(g(θ + e d) - g(θ - e d)) / 2e - H d| / |H d|`` along a random direction, e = 0.1
      (0.01 in float64): about 0 for a smooth loss, large where ReLUs switch, which the Hessian does not see.
    - `explained_variance`, of a trajectory: share of the squared distances from the current weights that the two
      components explain; `explained_variance_random_walk`: the same for a walk of the same step lengths.
    - `centre_loss`, at the origin of the plane.

    None of them has a standard error: the samples are fixed, and a plane is one of very many.

    Cost: `resolution` squared, plus 1, forward passes, twice as many with BatchNorm re-estimated; one
    Hessian-vector product and two gradients.

    Args:
        directions: Which plane; see above.
        checkpoints: Paths of checkpoints, patterns, folders or state dicts, in a list or alone, loaded without running
            code in them. None takes those that the run's `ModelCheckpoint` has saved.
        resolution: Points an axis.
        span: Half the width of a random plane, in filter norms. Other planes are 1 + `span` times as wide as their
            points.
        batch_norm: "eval" has the running statistics of training at every point, "recalibrate" re-estimates them at
            each. None takes "eval" for random directions and "recalibrate" for the others, whose points would not have
            their own loss otherwise.
        micro_batch_size: The re-estimation of BatchNorm depends on it.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range, or `checkpoints` does not go with `directions`.

    Example:
        >>> LossPlane(resolution=11).resolution
        11
    """

    defaults = ProbeArguments(schedule=AtFitEnd(), num_samples=256, name="plane")
    readings = LOSS_PLANE
    panels: tuple[Panel, ...] = LOSS_PLANE_PANELS
    headlines = LOSS_PLANE_HEADLINES

    def __init__(
        self,
        *,
        directions: Directions = "random",
        checkpoints: SavedStates | None = None,
        resolution: int = 21,
        span: float = 1.0,
        batch_norm: BatchNormMode | None = None,
        **shared: Unpack[LossArguments],
    ) -> None:
        super().__init__(**shared)
        check_choice("directions", directions, ("random", "trajectory", "checkpoints"))
        check_sources(checkpoints)
        if directions == "random" and checkpoints is not None:
            raise ValueError("random directions do not use checkpoints=: pass directions='trajectory' with it")
        if directions == "checkpoints" and checkpoints is None:
            raise ValueError("directions='checkpoints' needs two checkpoints or three: pass checkpoints=")
        check_whole_number("resolution", resolution, least=3)
        check_number("span", span, above=0)
        if batch_norm is not None:
            check_choice("batch_norm", batch_norm, ("recalibrate", "eval"))
        self.directions, self.checkpoints = directions, checkpoints
        self.resolution, self.span = resolution, span
        self.batch_norm = batch_norm

    @property
    def price(self) -> Sequence[Price]:
        """A pass a point of the grid and one at the centre; twice that with BatchNorm re-estimated."""
        points = self.resolution**2 + 1
        items = [Price(forward=points, copies=4)]
        if self._recalibrates:
            items.append(Price(forward=points, only="with BatchNorm"))
        items.append(Price(forward=2, backward=2, products=1, copies=3, only="if the loss has second derivatives"))
        return items

    def prepare(self, view: ModelView) -> None:
        """The loss can be replayed, and there is a plane to look at."""
        check_loss(view)
        leave_out_skipped(view)
        if self._recalibrates:
            check_recalibration(view)
        check_directions(view, self.directions, self.checkpoints, self.say)
        if reason := why_no_gap(view):
            self.say.info(f"there is no kink_gap, because the loss has no second derivatives here ({reason})")
        self._has_gap = not reason

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples and no BatchNorm statistics are estimated on micro-batches."""
        return not (self._recalibrates and batch_norms(pairs)) and same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure the points of the grid."""
        if self.directions != "random" and not are_finite(view.params):
            # No plane goes through such weights.
            yield Scalar("centre_loss", float(view.mean_loss({})), detail=True)
            return
        grid = find_grid(view, self.directions, self.checkpoints, self.resolution, self.span, self.say)
        if grid is None:
            return
        with view.run.progressing(self.name, len(grid)) as show:
            yield from landscape(view, grid, self._recalibrates, show)
        del grid
        if self._has_gap and (gap := measured_gap(view)) is not None:
            yield Scalar("kink_gap", gap, detail=True)

    @property
    def _recalibrates(self) -> bool:
        default = "eval" if self.directions == "random" else "recalibrate"
        return (self.batch_norm or default) == "recalibrate"
