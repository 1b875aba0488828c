"""The regime of training: lazy, catapult, edge of stability, or divergent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from typing_extensions import Unpack

from lightning_probes.callbacks.curvature.derivatives import check_gradient, check_products, check_real
from lightning_probes.callbacks.curvature.hessian import Curvature
from lightning_probes.callbacks.curvature.pictures import TRAINING_REGIME_HEADLINES, TRAINING_REGIME_PANELS
from lightning_probes.callbacks.curvature.readings import TRAINING_REGIME
from lightning_probes.callbacks.curvature.regime import Regime, Seen, is_divergent, regime_of, seen_before
from lightning_probes.callbacks.curvature.stability import relative_to_stability
from lightning_probes.functional.curvature.hvp import double_backward_kernels
from lightning_probes.probing.arguments import LossArguments, ProbeArguments
from lightning_probes.probing.checks import check_loss
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.schedules import LogSpacedSteps
from lightning_probes.probing.skipped import leave_out_skipped
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Flag, Result, Scalar


class TrainingRegime(Probe):
    r"""Which regime training is in, judged by the loss and its largest curvature from the first step on.

    With :math:`r` the largest eigenvalue of the Hessian over the optimizer's stability threshold (`stability_ratio`;
    for gradient descent :math:`\eta \lambda_{max} / 2`), and index 0 for the first measurement, `regime` is

    - 3, divergent: the loss is not finite, or it has been over 10 times the first one at every measurement over a
      doubling of steps from step 30 on. The latter is revoked if the loss falls again.
    - 1, catapult: :math:`r_0 > 1`, the loss rose above 1.05 times the first one within 30 steps, and now it is below
      the first one, :math:`\lambda_{max}` is below 0.9 times the first one and :math:`r \le 1.1` (Lewkowycz et al.
      2020, arXiv:2003.02218). A run that was a catapult stays one, unless it diverges.
    - 2, edge of stability: the median of the last three :math:`r` is between 0.85 and 1.2 (Cohen et al. 2021,
      arXiv:2103.00065).
    - 0, lazy: :math:`r < 0.85` at all measurements so far, at least three, and :math:`\lambda_{max}` stays within a
      factor of 3 of the first one.
    - -1, unsettled: none of these. No label is forced.

    The theory is that of full-batch gradient descent without momentum on the squared loss, and a large part of the
    training data should be probe samples. With another loss or optimizer the rule is the same, but only descriptive.
    :math:`r_0` has the learning rate of its step, so a warm-up from 0 hides a catapult. Adam has no :math:`r` in its
    first steps, so it has no catapult. With small batches :math:`r` stays below 1.

    Also reports `peak_loss_ratio`, the largest loss so far over the first one, and `lambda_ratio`, the curvature over
    the first one. The flag `catapult` is of level "info"; `divergent` is of level "warning".

    None of these has a standard error, because the samples are fixed. `stability_ratio` inherits the residual of
    `lambda_max` (`lambda_max_residual`).

    Cost: one forward and one backward pass, and up to 31 Hessian-vector products (twice as many with Adam); usually
    fewer than ten, because Lanczos starts from the eigenvector of the last measurement.

    All arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> TrainingRegime(num_samples=1024).name
        'regime'
    """

    defaults = ProbeArguments(schedule=LogSpacedSteps(12), name="regime")
    readings = TRAINING_REGIME
    panels = TRAINING_REGIME_PANELS
    headlines = TRAINING_REGIME_HEADLINES
    price: Sequence[Price] = (
        Price(forward=1, backward=1, products=31, copies=36),
        Price(products=30, copies=5, only="with Adam"),
        Price(products=30, only="with parameter groups of different settings"),
    )

    def __init__(self, **shared: Unpack[LossArguments]) -> None:
        super().__init__(**shared)

    def prepare(self, view: ModelView) -> None:
        """Check that the loss can be replayed and differentiated twice."""
        check_real(view)
        with double_backward_kernels():
            check_loss(view)
            leave_out_skipped(view)
            check_products(view, check_gradient(view), self.say)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples."""
        return same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure loss and curvature, and judge all measurements so far."""
        before = seen_before(self.history, self.name)
        with double_backward_kernels():
            curvature = Curvature(view)
            yield Scalar("loss", curvature.loss, detail=True)
            now = Seen(view.step, curvature.loss)
            if math.isfinite(curvature.loss):
                top = curvature.top_eigenpair("lambda_max", self.carried)
                yield Scalar("lambda_max", top.value, detail=True)
                yield Scalar("lambda_max_residual", top.residual, detail=True)
                stability = relative_to_stability(view, curvature, self.carried, self.say)
                now = Seen(view.step, curvature.loss, top.value, None if stability is None else stability.ratio)
                if now.ratio is not None:
                    yield Scalar("stability_ratio", now.ratio, detail=True)
                yield curvature.not_converged()
        yield from _judged([*before, now])


def _judged(seen: Sequence[Seen]) -> Iterator[Result]:
    first, now, regime = seen[0], seen[-1], regime_of(seen)
    yield Scalar("regime", int(regime))
    losses = [each.loss for each in seen if math.isfinite(each.loss)]
    if first.loss > 0 and math.isfinite(now.loss):
        yield Scalar("loss_ratio", now.loss / first.loss, detail=True)
    if losses and first.loss > 0:
        yield Scalar("peak_loss_ratio", max(losses) / first.loss, detail=True)
    if now.curvature is not None and first.curvature:
        yield Scalar("lambda_ratio", now.curvature / first.curvature, detail=True)
    yield Flag(
        "catapult", regime == Regime.CATAPULT, level="info",
        message="the loss rose early, and training has landed in a flatter place",
    )  # fmt: skip
    yield Flag(
        "divergent", is_divergent(seen), now.loss / first.loss if first.loss else None,
        message=f"the loss was over 10 times the first one over a doubling of steps ({first.loss:.3g} then, now "
        f"{now.loss:.3g})" if math.isfinite(now.loss) else "the loss is not finite",
    )  # fmt: skip
