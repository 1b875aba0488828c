"""Curvature of the loss, relative to the stability threshold of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_probes.callbacks.curvature.derivatives import check_gradient, check_products, check_real
from lightning_probes.callbacks.curvature.hessian import Curvature
from lightning_probes.callbacks.curvature.pictures import SHARPNESS_HEADLINES, SHARPNESS_PANELS
from lightning_probes.callbacks.curvature.readings import SHARPNESS
from lightning_probes.callbacks.curvature.stability import relative_to_stability, stability_flags
from lightning_probes.functional.curvature.hvp import double_backward_kernels
from lightning_probes.metrics.mean_estimate import estimate_mean
from lightning_probes.probing.arguments import LossArguments, ProbeArguments
from lightning_probes.probing.checks import check_loss
from lightning_probes.probing.layers import by_layer
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.skipped import leave_out_skipped
from lightning_probes.probing.values import check_choices, check_number, check_switch
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Flag, Result, Scalar

Quantity: TypeAlias = Literal["lambda_max", "sam", "trace"]

_TRACE_PRODUCTS = 30
_TRACE_DIRECTIONS = 7  # if `lambda_max` has not found any, from the first of the trace's products
_LAYER_TOLERANCE = 1e-2


class Sharpness(Probe):
    r"""Largest Hessian eigenvalue, also relative to the optimizer's stability threshold; SAM sharpness; trace.

    .. math:: \lambda_{\max}(H), \quad H = \nabla^2_\theta \frac{1}{n} \sum_b n_b L_b(\theta)

    over the probe samples, in eval mode and float32 or better. Gradient descent is unstable if it exceeds 2 / lr, and
    training tends to stay near this value (Cohen et al. 2021, arXiv:2103.00065). For Adam the same holds for the
    preconditioned Hessian (Cohen et al. 2022, arXiv:2207.14484).

    Reports:

    - `lambda_max`, the largest eigenvalue (algebraically, not in magnitude) by Lanczos, with `lambda_max_residual`
      relative to it; its standard error is the spread of the curvature along that direction over micro-batches.
    - `stability_ratio`: 1 is the edge of stability, for any learning rates, momenta and parameter groups at that step.
      Training with small batches stays below 1. For SGD, Adam and AdamW. Adam also has `lambda_max_preconditioned`;
      both are absent in its first 1 / (1 - beta1) steps. Clipping by norm (`gradient_clip_val`) is included, by the
      factor with which it would shorten the gradient of the probe samples.
    - `sam`: rise of the loss after one step of length `rho` along the gradient (Foret et al. 2021, arXiv:2010.01412),
      one step for the whole probe set; standard error over micro-batches.
    - `trace`, if in `quantities`: exact on the first 7 directions of Lanczos, and Hutchinson's estimate with Rademacher
      vectors on the rest (deflation, Gambhir et al. 2017, arXiv:1603.05988); standard error over the vectors.
    - ``lambda_max/layer/<name>`` and ``trace/layer/<name>``, with `per_layer`: largest eigenvalue and trace of each
      layer's diagonal block of H, with all other parameters fixed. No block's eigenvalue is above `lambda_max`. The
      traces add up to `trace`; each has its own standard error over the vectors.
    - `loss`, on the probe samples.

    Not a generalisation score: sharpness follows the learning rate and the scale of the weights (Andriushchenko et
    al. 2023, arXiv:2302.07011).

    Cost: at most 31 Hessian-vector products (two to four forward and backward passes each) for `lambda_max`, the same
    number for Adam's ratio, 30 for `trace`; two passes for `sam`. A later measurement starts from the last eigenvector.
    Each checkpoint holds a copy of it in bfloat16: 2 bytes per parameter, once for `lambda_max`, and again for Adam's
    ratio, for parameter groups that differ, and for `per_layer`.
    Up to a gigabyte of graphs is kept for the products, in addition to the memory of one micro-batch; this saves about
    a third of each product. `per_layer` adds no cost to `trace`; for `lambda_max` each layer adds a sixth to a half.

    Args:
        quantities: The quantities to measure: "lambda_max", "sam", "trace".
        rho: Length of the SAM step.
        per_layer: Also report `lambda_max` and `trace` of each layer's parameters, if they are among the quantities.
        instability_threshold: Raise the flag `unstable` when `stability_ratio` exceeds it at two successive
            measurements and `loss` has not fallen since the ratio was below it.
        sharp_threshold: Raise the flag `sharp` when `lambda_max` exceeds it; None for never. No universal value
            exists.
        loss_fn: Must be twice differentiable.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> Sharpness(quantities=("lambda_max", "trace")).quantities
        ('lambda_max', 'trace')
    """

    defaults = ProbeArguments(schedule=(LogSpacedSteps(4), AtFitEnd()), name="sharpness")
    readings = SHARPNESS
    panels = SHARPNESS_PANELS
    headlines = SHARPNESS_HEADLINES

    def __init__(
        self,
        *,
        quantities: Sequence[Quantity] = ("lambda_max", "sam"),
        rho: float = 0.05,
        per_layer: bool = False,
        instability_threshold: float = 2.0,
        sharp_threshold: float | None = None,
        **shared: Unpack[LossArguments],
    ) -> None:
        super().__init__(**shared)
        check_choices("quantities", quantities, get_args(Quantity))
        check_number("rho", rho, above=0)
        check_switch("per_layer", per_layer)
        check_number("instability_threshold", instability_threshold, above=0)
        check_number("sharp_threshold", sharp_threshold, optional=True)
        self.quantities = quantities
        self.rho = rho
        self.per_layer = per_layer
        self.instability_threshold = instability_threshold
        self.sharp_threshold = sharp_threshold

    @property
    def price(self) -> Sequence[Price]:
        """The cost of each quantity. All quantities share the gradient."""
        items = [Price(forward=1, backward=1, copies=4)]
        if "lambda_max" in self.quantities:
            items.append(Price(products=31, copies=37))
            items.append(Price(products=30, copies=5, only="with Adam"))
            items.append(Price(products=30, only="with parameter groups of different settings"))
            if self.per_layer:
                items.append(Price(products=30, each="layer"))
        if "trace" in self.quantities:
            items.append(Price(products=30, copies=2 if "lambda_max" in self.quantities else 20))
        if "sam" in self.quantities:
            items.append(Price(forward=1))
        return items

    def prepare(self, view: ModelView) -> None:
        """Check that the loss can be replayed, and differentiated once or twice, as the quantities need."""
        check_real(view)
        with double_backward_kernels():
            check_loss(view)
            leave_out_skipped(view)
            custom = check_gradient(view)
            if self._takes_products:
                check_products(view, custom, self.say)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples."""
        return same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure the curvature."""
        with double_backward_kernels():
            curvature = Curvature(view, products=self._takes_products)
            yield Scalar("loss", curvature.loss, detail=True)
            directions = curvature.known_directions(_TRACE_DIRECTIONS if "trace" in self.quantities else 0)
            if "lambda_max" in self.quantities:
                top = curvature.top_eigenpair("lambda_max", self.carried, directions)
                yield Scalar("lambda_max", top.value, curvature.spread_along(top.vector))
                yield Scalar("lambda_max_residual", top.residual, detail=True)
            if "trace" in self.quantities:
                yield from self._traces(curvature.traces(_TRACE_PRODUCTS, self.carried, directions))
            del directions  # before the next Lanczos
            if "lambda_max" in self.quantities:
                yield from self._layers_lambda_max(view, curvature)
                if (stability := relative_to_stability(view, curvature, self.carried, self.say)) is not None:
                    if stability.preconditioned is not None:
                        yield Scalar("lambda_max_preconditioned", stability.preconditioned, detail=True)
                    yield Scalar("stability_ratio", stability.ratio)
                    yield from stability_flags(
                        stability.ratio, curvature.loss, self.history, self.name, self.instability_threshold
                    )
                yield curvature.not_converged()
                if self.sharp_threshold is not None:
                    yield _sharp(top.value, self.sharp_threshold)
            if "sam" in self.quantities:
                sam = curvature.rise_along_gradient(self.rho)
                yield Scalar("sam", sam.mean, sam.standard_error)

    @property
    def _takes_products(self) -> bool:
        return set(self.quantities) != {"sam"}

    def _traces(self, samples: Mapping[str, Tensor]) -> Iterator[Scalar]:
        """The trace for all parameters, and for each layer."""
        for key, part in {"trace": samples, **self._layers("trace", samples)}.items():
            trace = estimate_mean(torch.stack([*part.values()]).sum(0))
            yield Scalar(key, trace.mean, trace.standard_error)

    def _layers_lambda_max(self, view: ModelView, curvature: Curvature) -> Iterator[Scalar]:
        filled = {name: parameter for name, parameter in view.params.items() if parameter.numel()}
        for key, part in self._layers("lambda_max", filled).items():
            top = curvature.top_eigenpair(key, self.carried, curvature.block(part), part, _LAYER_TOLERANCE)
            yield Scalar(key, top.value)

    def _layers(self, quantity: Quantity, params: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Each layer's tensors by the key of its result."""
        layers = by_layer(params, errors=quantity == "trace") if self.per_layer else {}
        return {f"{quantity}/layer/{layer}": part for layer, part in layers.items()}


def _sharp(value: float, threshold: float) -> Flag:
    return Flag("sharp", value > threshold, value, threshold, f"lambda_max is {value:.3g}, above {threshold:.3g}")
