"""Whether gradients vanish or explode on their way back through the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from typing_extensions import Unpack

from lightning_probes.callbacks.flow.depth import find_depth
from lightning_probes.callbacks.flow.gathering import of_every_sample
from lightning_probes.callbacks.flow.pictures import GRADIENT_FLOW_HEADLINES, GRADIENT_FLOW_PANELS
from lightning_probes.callbacks.flow.readings import GRADIENT_FLOW
from lightning_probes.probing.arguments import LossArguments, ProbeArguments
from lightning_probes.probing.checks import check_loss
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.schedules import LogSpacedSteps
from lightning_probes.probing.values import check_names, check_number
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Curve, Flag, FloatArray, Result, Scalar


class GradientFlow(Probe):
    r"""Norm of the loss's gradient with respect to activations over depth: do gradients vanish or explode?

    .. math:: g_l = \operatorname{median}_i \left\lVert \frac{\partial L_i}{\partial z_l^{(i)}} \right\rVert

    over samples i with losses L_i, where z_l is the residual stream after its l-th addition, or in a network without
    residual additions the output of its l-th layer with weights. Gradients of weights don't show it: in a chain of
    ReLU layers the norm of the gradient of a weight is that of g times that of the activation, which change in opposite
    directions.

    Reports:

    - `norm`: the curve of g over depth, and `decades`, log10 of g at the first place over g at the last: negative if
      gradients vanish on the way back. `slope` is the slope of log10 g over depth, by least squares.
    - `stream_decades`: log10 of the median norm of z at the last place over that at the first.
    - `dead`: the share of samples with a gradient of exactly 0 at the first place.
    - flag `vanishing`: `decades` is below minus its threshold; flag `exploding`: it is above its threshold. Growth
      hurts sooner than decay, so the thresholds differ.

    The loss of a micro-batch must be the mean of the losses of its samples; with another loss, gradients are those of
    the micro-batch's loss times its size. Modules run in eval mode.

    Cost: one forward and one backward pass.

    Args:
        layers: "auto" takes the results of residual additions, or if there are fewer than two the outputs of layers
            with weights, but for the last, which is the head. Or names and globs of layers.
        vanishing: Decades of gradient norm that may be lost on the way back.
        exploding: Decades that may be gained.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> GradientFlow(vanishing=2.0).name
        'gradient_flow'
    """

    defaults = ProbeArguments(schedule=LogSpacedSteps(4), num_samples=128, name="gradient_flow")
    price = (
        Price(forward=1, backward=1),
        Price(forward=1, only="where a pass takes another course than the first one, which is followed anew"),
    )
    readings = GRADIENT_FLOW
    panels = GRADIENT_FLOW_PANELS
    headlines = GRADIENT_FLOW_HEADLINES

    def __init__(
        self,
        *,
        layers: str | Sequence[str] = "auto",
        vanishing: float = 3.0,
        exploding: float = 1.5,
        **shared: Unpack[LossArguments],
    ) -> None:
        super().__init__(**shared)
        check_names("layers", layers)
        check_number("vanishing", vanishing, above=0)
        check_number("exploding", exploding, above=0)
        self.layers, self.vanishing, self.exploding = layers, vanishing, exploding

    def prepare(self, view: ModelView) -> None:
        """Check that the loss can be replayed, and choose the places."""
        check_loss(view)
        self._depth = depth = find_depth(view, self.layers)
        where = "layers" if depth.course is None else "residual additions"
        self.recorded = {**type(self).recorded, "places": list(depth.names), "of": where}
        self.say.info(f"measuring gradients at {len(depth.names)} {where}: {', '.join(depth.names)}")

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples."""
        return same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure activations and gradients at all places."""
        names = self._depth.names
        found = {
            batch.index: {name: torch.stack(both) for name, both in self._depth.look(view, batch).items()}
            for batch in view.batches()
        }
        values = of_every_sample(view, names, found, width=2)
        streams, gradients = (_medians([values[name][kind] for name in names]) for kind in (0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            stream, gradient = np.log10(streams), np.log10(gradients)
            decades = gradient[0] - gradient[-1]
        depth = np.arange(len(names), dtype=float)
        yield Curve("norm", depth, gradients, "depth (places, from the input)", "norm (of the gradient)")
        yield Scalar("decades", decades)
        yield Scalar("slope", _slope(gradient), detail=True)
        with np.errstate(invalid="ignore"):
            yield Scalar("stream_decades", stream[-1] - stream[0], detail=True)
        yield Scalar("dead", np.mean(values[names[0]][1] == 0), detail=True)
        message = f"gradients lose {-decades:.3g} decades of their norm on the way back through {len(names)} places"
        yield Flag("vanishing", bool(decades < -self.vanishing), decades, -self.vanishing, message)
        message = f"gradients gain {decades:.3g} decades of norm on the way back through {len(names)} places"
        yield Flag("exploding", bool(decades > self.exploding), decades, self.exploding, message)


def _medians(values: Sequence[FloatArray]) -> FloatArray:
    return np.array([np.median(each) if each.size else np.nan for each in values])


def _slope(values: FloatArray) -> float:
    """Of the least-squares line over 0, 1, …; NaN if a value is not finite."""
    if not np.isfinite(values).all():
        return float("nan")
    places = np.arange(len(values)) - (len(values) - 1) / 2
    return float(places @ (values - values[0]) / (places @ places))
