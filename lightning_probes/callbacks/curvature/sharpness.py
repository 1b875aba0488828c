"""Curvature of the loss, relative to the stability threshold of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import Unpack

from lightning_probes.callbacks.curvature.derivatives import check_gradient, check_products
from lightning_probes.callbacks.curvature.hessian import Curvature
from lightning_probes.callbacks.curvature.readings import SHARPNESS
from lightning_probes.callbacks.curvature.stability import clipping_factor, known, stability_of
from lightning_probes.callbacks.curvature.stability_flags import stability_flags
from lightning_probes.functional.curvature.hvp import double_backward_kernels
from lightning_probes.functional.curvature.lanczos import Eigenpair
from lightning_probes.functional.curvature.stability_limits import preconditioned
from lightning_probes.metrics.mean_estimate import estimate_mean
from lightning_probes.probing.arguments import LossArguments, ProbeArguments
from lightning_probes.probing.checks import check_loss
from lightning_probes.probing.data.skipped import leave_out_skipped
from lightning_probes.probing.layers import by_layer
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_choices, check_number, check_switch
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import Lines, Panel
from lightning_probes.results import Flag, Result, Scalar

Quantity: TypeAlias = Literal["lambda_max", "sam", "trace"]

_TRACE_PRODUCTS = 30
_TRACE_DIRECTIONS = 7  # of the products, where `lambda_max` has not found them
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
    panels: tuple[Panel, ...] = (
        Lines(
            "stability_ratio_over_steps", "Sharpness over the optimizer's stability threshold",
            "In the long run full-batch training hovers at 1, minibatch SGD stays below 1 if its batches are small. "
            "Not a generalisation score.",
            y="stability_ratio", y_label="λ_max over threshold (no unit)", reference=(1.0, "edge of stability"),
            log_x=True,
            caveat="Whether training diverges: above 1 the loss may rise for some steps and fall over many.",
        ),
        Lines(
            "lambda_max_over_steps", "Largest Hessian eigenvalue (± 2 s.e. over micro-batches)",
            "Follows the learning rate and the scale of the weights. Not a generalisation score.", y="lambda_max",
            y_label="λ_max (loss per squared weight)", log_x=True,
            caveat="The flatness of the minimum as a whole: this is one direction of very many, and rescaling the "
            "weights changes it without changing the function.",
        ),
    )  # fmt: skip

    headlines: tuple[Lines, ...] = (
        Lines(
            "sam", "Rise of the loss on one step of length rho along the gradient (unit of the training loss)",
            "Follows rho and the scale of the weights, so compare runs of one rho. Not a generalisation score.",
            y="sam", y_label="sam (unit of the training loss)", log_x=True,
            caveat="How the loss rises in other directions.",
        ),
    )  # fmt: skip

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
        """By quantity; the gradient serves all of them."""
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
        """The loss can be replayed, and differentiated twice."""
        for name, parameter in view.params.items():
            if parameter.is_complex():
                raise MisconfigurationException(
                    f"parameter {name!r} is complex, and curvature is measured for real parameters only: keep it as a "
                    "real one and call torch.view_as_complex in forward, or pass on_error='warn' to train without this "
                    "probe"
                )
        with double_backward_kernels():
            check_loss(view)
            leave_out_skipped(view)
            custom = check_gradient(view)
            if self._takes_products:
                check_products(view, custom, self.say)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """The loss is a mean over samples."""
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
                yield from self._stability(view, curvature)
                yield from self._flags(curvature.eigenpairs)
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

    def _stability(self, view: ModelView, curvature: Curvature) -> Iterator[Result]:
        """Curvature divided by the optimizer's stability threshold, if that is known."""
        stability = stability_of(view.optimizers, view.params)
        if stability is None:
            if not known(view.optimizers):
                names = ", ".join(sorted({group.optimizer for group in view.optimizers}))
                self.say.info(f"the stability threshold of {names} is not known, so there is no stability_ratio")
            return
        top = curvature.eigenpairs["lambda_max"]
        if stability.inverse_preconditioner is not None:
            scaled = preconditioned(curvature.matvec, stability.inverse_preconditioner)
            top = curvature.top_eigenpair("lambda_max_preconditioned", self.carried, scaled)
            yield Scalar("lambda_max_preconditioned", top.value, detail=True)
        if stability.uniform is None:
            scaled = preconditioned(curvature.matvec, stability.inverse_threshold)
            top = curvature.top_eigenpair("stability_ratio", self.carried, scaled)
        ratio = top.value * (1.0 if stability.uniform is None else stability.uniform)
        ratio *= clipping_factor(view.gradient_clip, curvature.gradient)
        yield Scalar("stability_ratio", ratio)
        yield from stability_flags(ratio, curvature.loss, self.history, self.name, self.instability_threshold)

    def _flags(self, pairs: Mapping[str, Eigenpair]) -> Iterator[Flag]:
        failed = [f"{key} (relative residual {pair.residual:.1e})" for key, pair in pairs.items() if not pair.converged]
        message = (
            f"Lanczos did not converge for {', '.join(failed)}: a finite value is a lower bound, and the next "
            "measurement goes on from the vector found"
        )
        yield Flag("not_converged", bool(failed), message=message if failed else "")
        if self.sharp_threshold is not None:
            value = pairs["lambda_max"].value
            message = f"lambda_max is {value:.3g}, above {self.sharp_threshold:.3g}"
            yield Flag("sharp", value > self.sharp_threshold, value, self.sharp_threshold, message)
