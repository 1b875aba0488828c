"""Norms of training's own gradients and updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
from typing_extensions import Unpack

from lightning_probes.callbacks.flow.pictures import GRADIENT_NORMS_HEADLINES, GRADIENT_NORMS_PANELS
from lightning_probes.callbacks.flow.readings import GRADIENT_NORMS
from lightning_probes.callbacks.flow.steps import Begun, taken, together
from lightning_probes.probing.arguments import ProbeArguments, ScheduledArguments
from lightning_probes.probing.layers import by_layer
from lightning_probes.probing.moment import Moment
from lightning_probes.probing.monitor import Monitor
from lightning_probes.probing.schedules import EveryNSteps, LogSpacedSteps
from lightning_probes.probing.values import check_switch
from lightning_probes.results import Flag, Heatmap, Result, Scalar


class GradientNorms(Monitor):
    r"""How large the gradients and updates of training are, and where gradients are zero or not finite.

    It reads the gradients that training has computed, just before an optimizer takes a due step: after accumulation,
    after the mean over processes, without the factor of a gradient scaler, and before clipping. It makes no pass of its
    own, and reads from the device once per event.

    Reports:

    - `global_norm`: L2 norm of the gradients of all parameters that the optimizer updates.
    - `update_ratio`: :math:`\|\theta_{t+1} - \theta_t\| / \|\theta_t\|` over the same parameters; absent if all are 0.
    - `zeros`: share of gradient entries that are exactly 0. Entries that a sparse gradient lacks count as 0.
    - `layer/<name>`: norm of the gradient of each layer's own parameters, and `layers`, the same as a heatmap over
      steps, in powers of ten. A layer whose gradient is not finite is reported in any case: `nonfinite` names it.
    - `clip_factor`: norm after clipping over norm before, if the Trainer clips. 1 means that clipping did not act.
    - `optimizer/<place>/...`: the first three for each optimizer, if the run has several. Without this prefix they are
      over all optimizers that stepped in the due batch.

    With a gradient scaler for float16, training skips a step whose gradients are not finite. The flag `skipped`, of
    level "info", says so, and no number is reported for that step.

    None of these has a standard error: they describe one step exactly. The norms of weight gradients can hide a signal
    that vanishes on the way back, because they also depend on the size of each layer's inputs.

    Cost: no pass; one copy of the trained parameters for the time of a due step.

    Args:
        per_layer: Whether to report each layer.

    All further arguments are those of `Monitor`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> GradientNorms(schedule=EveryNSteps(20)).name
        'gradients'
    """

    defaults = ProbeArguments(schedule=(LogSpacedSteps(4), EveryNSteps(50)), name="gradients")
    readings = GRADIENT_NORMS
    panels = GRADIENT_NORMS_PANELS
    headlines = GRADIENT_NORMS_HEADLINES
    every_optimizer: ClassVar[bool] = True
    _begun: Sequence[Begun] = ()

    def __init__(self, *, per_layer: bool = True, **shared: Unpack[ScheduledArguments]) -> None:
        super().__init__(**shared)
        check_switch("per_layer", per_layer)
        self.per_layer = per_layer

    def before_step(self, moment: Moment) -> Iterable[Result]:
        """Read the gradients, and copy the parameters that are about to change."""
        if moment.stepping is not None:
            earlier = [begun for begun in self._begun if begun.step == moment.step]
            self._begun = [*earlier, Begun.of(moment, moment.stepping)]
        return ()

    def after_step(self, moment: Moment) -> Iterator[Result]:
        """Measure how far the parameters have moved, and read all numbers from the device."""
        begun, self._begun = self._begun, ()
        steps = taken(begun, moment)
        all_steps = together(steps)
        if any(each.by.may_skip for each in begun):
            yield _skipped(all_steps.norms)
            if not math.isfinite(all_steps.global_norm):
                return
        yield from all_steps.scalars()
        if all_steps.clipped is not None and all_steps.global_norm:
            yield Scalar("clip_factor", all_steps.clipped / all_steps.global_norm, detail=True)
        yield from self._layers(all_steps.norms, moment.step)
        if begun[0].by.count > 1:
            for each, step in zip(begun, steps, strict=True):
                yield from step.scalars(f"optimizer/{each.by.place}/", detail=True)

    def _layers(self, norms: Mapping[str, float], step: int) -> Iterator[Result]:
        layers = {key: math.hypot(*own.values()) for key, own in by_layer(norms).items()}
        for key, norm in layers.items():
            if self.per_layer or not math.isfinite(norm):
                yield Scalar(f"layer/{key}", norm, detail=True)
        powers = {key: math.log10(norm) for key, norm in layers.items() if 0 < norm < math.inf}
        if self.per_layer and powers:
            yield Heatmap("layers", np.array([*powers.values()])[:, None], [*powers], (str(step),))


def _skipped(norms: Mapping[str, float]) -> Flag:
    """Whether the gradient scaler skips a step with these gradients."""
    broken = [key for key, own in by_layer(norms).items() if not all(map(math.isfinite, own.values()))]
    said = f"the gradient scaler skips this step: gradients of {', '.join(broken)} are not finite" if broken else ""
    return Flag("skipped", bool(broken), message=said, level="info")
