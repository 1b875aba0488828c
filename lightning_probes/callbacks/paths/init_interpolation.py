"""Loss on the straight line from the initialisation to the current parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import Unpack

from lightning_probes.callbacks.paths.batch_norm import batch_norms, check_recalibration
from lightning_probes.callbacks.paths.linearized import check_linearized, linearized
from lightning_probes.callbacks.paths.path import BatchNormMode, Line, moved, present, unknown_at_init
from lightning_probes.callbacks.paths.pictures import (
    INIT_INTERPOLATION_HEADLINES,
    INIT_INTERPOLATION_PANELS,
    LINEARIZED_HEADLINE,
    curve_panels,
)
from lightning_probes.callbacks.paths.readings import INIT_INTERPOLATION
from lightning_probes.callbacks.paths.scores import Scorer
from lightning_probes.callbacks.paths.shape import curves_of, shape_of
from lightning_probes.functional.paths.interpolation import alphas
from lightning_probes.probing.arguments import ProbeArguments
from lightning_probes.probing.data.drawing import DataSource, DataSources
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.schedules import AtCheckpoints, AtFitEnd
from lightning_probes.probing.values import check_choice, check_names, check_number, check_switch, check_whole_number
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import Lines
from lightning_probes.results import Result, Scalar

_ALPHA = "alpha (0 = initialisation, 1 = checkpoint)"


class InitInterpolation(Probe):
    r"""Loss and accuracy on the line from the initialisation to the current parameters.

    .. math:: L(\theta(\alpha)), \quad \theta(\alpha) = (1 - \alpha) \theta_0 + \alpha \theta

    at `num_alphas` evenly spaced points, both ends exact (Goodfellow et al. 2015, arXiv:1412.6544; Lucas et al. 2021,
    arXiv:2104.11044). The initialisation is captured before the first optimizer step.

    Reports, on the training samples:

    - `monotonic`: 1 if `max_rise` is at most the larger of `tolerance` times the fall from the initialisation to the
      lowest point and two of its standard errors, else 0; absent if a point is not finite.
    - `max_rise`: the largest rise of the loss along the line, max over i <= j of L_j - L_i (min Δ of Lucas et al.); its
      standard error is over micro-batches, paired at the two points.
    - `plateau_fraction`: share of points with a loss above 0.9 times the initial one (Frankle 2020, arXiv:2012.06898);
      absent if the initial one is not positive.
    - `distance`, `distance_normalized`: L2 distance of the parameters from the initialisation, and this distance
      divided by the norm of the initialisation. Buffers do not count.
    - `bn_gap`: change of the loss at alpha = 1 by re-estimating BatchNorm; absent without BatchNorm.
    - `linearized_error` with `linearized`: distance of the expansion of the logits about the initialisation,
      :math:`f(\theta_0) + J(\theta_0) (\theta - \theta_0)`, from the logits, relative to how far these have moved; its
      standard error is over micro-batches. 0 means that training was lazy (Mu et al. 2020, arXiv:2004.05529; Maddox et
      al. 2021, arXiv:2103.01439). `linearized_accuracy`: accuracy of this expansion, with its binomial error.

    The curves are `loss` and `accuracy` on the training samples, and under `val/` on the validation samples.

    Cost: `num_alphas` forward passes over each probe set, and with BatchNorm the same again over the training samples;
    `linearized` takes two more.

    Args:
        num_alphas: Points on the line, both ends included.
        batch_norm: "recalibrate" re-estimates running statistics at every point, ends included; "eval" interpolates
            the statistics of training.
        tolerance: The largest rise that still counts as monotonic, as a share of the fall.
        layers: Names or globs of the layers to move; the others keep their current parameters. None moves all.
        linearized: Whether to compare the model with its expansion about the initialisation, or about the pretrained
            weights that it starts from. Buffers keep their present values. It needs forward-mode derivatives.
        data: "train", "val", or both; your own loader or dataset replaces the training samples. In a dict of sources,
            the first one replaces the training samples, and the curves of the others are under their names.
        num_samples: Number of samples in each probe set.
        micro_batch_size: The re-estimation of BatchNorm depends on it.
        predict_fn: Accuracy is reported only for logits of classes.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If `num_alphas` is less than 2 or another argument is out of range.

    Example:
        >>> InitInterpolation(num_alphas=11).num_alphas
        11
    """

    defaults = ProbeArguments(schedule=(AtCheckpoints(), AtFitEnd()), data=("train", "val"), name="interpolation")
    needs_init_state = True
    readings = INIT_INTERPOLATION
    panels = INIT_INTERPOLATION_PANELS
    headlines: tuple[Lines, ...] = INIT_INTERPOLATION_HEADLINES

    def __init__(
        self,
        *,
        num_alphas: int = 25,
        batch_norm: BatchNormMode = "recalibrate",
        tolerance: float = 1e-3,
        layers: str | Sequence[str] | None = None,
        linearized: bool = False,
        **shared: Unpack[ProbeArguments[DataSource | DataSources]],
    ) -> None:
        super().__init__(**shared)
        check_whole_number("num_alphas", num_alphas, least=2)
        check_choice("batch_norm", batch_norm, ("recalibrate", "eval"))
        check_number("tolerance", tolerance, least=0)
        if layers is not None:
            check_names("layers", layers)
        self.num_alphas = num_alphas
        self.batch_norm = batch_norm
        self.tolerance = tolerance
        check_switch("linearized", linearized)
        self.layers = layers
        self.linearized = linearized
        if linearized:
            self.headlines = (*self.headlines, LINEARIZED_HEADLINE)
        if isinstance(self.data, Mapping):
            first, *others = self.data
            self.panels = curve_panels({"": f"{first}:", **{f"{name}/": f"{name}:" for name in others}})
        elif self.data == "val":
            self.panels = curve_panels({"": "Validation"})

    @property
    def price(self) -> Sequence[Price]:
        """Re-estimating BatchNorm takes one pass per point, and `bn_gap` one more."""
        items = [Price(forward=self.num_alphas, copies=2)]
        if self.batch_norm == "recalibrate":
            items.append(Price(forward=self.num_alphas + 1, only="with BatchNorm, over the training samples"))
        if self.linearized:
            items.append(Price(forward=2, copies=2))
        return items

    def prepare(self, view: ModelView) -> None:
        """Check that the initialisation is known and the loss can be replayed, and find out how to score logits."""
        if view.init_state is None and view.run.is_single:
            raise MisconfigurationException("there is no initialisation to start the line from: pass init_state=")
        moved(view, self.layers)
        if self.batch_norm == "recalibrate":
            check_recalibration(view)
        unasked = "val" if self.data == ("train", "val") else None
        self._scorer = Scorer(view, self.say, self.carried, may_leave_out=unasked)
        if self.linearized:
            check_linearized(view, self.layers)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples and no BatchNorm statistics are estimated on micro-batches."""
        recalibrates = self.batch_norm == "recalibrate" and batch_norms(pairs)
        return not recalibrates and same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure the points of the line."""
        if view.init_state is None:
            return
        if new := unknown_at_init(view):
            self.say.warn(
                f"parameter {new[0]!r} did not exist, or had another shape, at the initialisation, so there is no "
                "line to the current parameters"
            )
            return
        now = present(view, self.layers)
        line = Line(view, view.initial(now), now, self.batch_norm)
        steps = alphas(self.num_alphas).numpy()
        found = self._scorer(view, (line.at(alpha) for alpha in steps.tolist()))
        yield from curves_of(found, steps, _ALPHA)
        first = next(iter(found))
        yield from shape_of(found[first], self.tolerance)
        absolute, relative = line.distance()
        yield Scalar("distance", absolute, detail=True)
        yield Scalar("distance_normalized", relative, detail=True)
        if self.batch_norm == "recalibrate" and batch_norms(view):
            yield Scalar("bn_gap", float(found[first].loss[-1] - float(view.mean_loss({}))), detail=True)
        if self.linearized:
            yield from linearized(view, self._scorer, self.layers)
