"""The loss between this run and another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from typing_extensions import Unpack

from lightning_probes.callbacks.paths.aligning import Align, check_align, exchangeable
from lightning_probes.callbacks.paths.batch_norm import batch_norms, check_recalibration
from lightning_probes.callbacks.paths.connecting import Connecting, price_of_lines
from lightning_probes.callbacks.paths.detour import PathKind, check_path, detour, price_of_path, with_path_defaults
from lightning_probes.callbacks.paths.ends import check_crossing, end_of, read_ends
from lightning_probes.callbacks.paths.path import BatchNormMode, present
from lightning_probes.callbacks.paths.pictures import (
    MODE_CONNECTIVITY_HEADLINES,
    MODE_CONNECTIVITY_PANELS,
    connectivity_panels,
)
from lightning_probes.callbacks.paths.readings import MODE_CONNECTIVITY
from lightning_probes.callbacks.paths.real import check_real
from lightning_probes.callbacks.paths.scores import Scorer
from lightning_probes.probing.arguments import ProbeArguments, check_state
from lightning_probes.probing.data.drawing import DataSource
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.run.init_state import InitStateSource
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_choice, check_whole_number
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result


class ModeConnectivity(Probe):
    r"""Loss and error on the line from this run to another one of the same architecture.

    .. math:: L(\theta(\alpha)), \quad \theta(\alpha) = (1 - \alpha) \theta + \alpha \theta_{other}

    at `num_alphas` evenly spaced points, both ends exact (Frankle et al. 2020, arXiv:1912.05671).

    Reports for the loss, and for the error under `error_...`, on the training samples, and as details on the validation
    samples under `val/`. Standard errors are over micro-batches, paired: of the highest point against the ends.

    - `barrier`: the largest height over the chord, max over alpha of
      :math:`L(\alpha) - ((1 - \alpha) L(0) + \alpha L(1))` (Entezari et al. 2022, arXiv:2110.06296).
    - `barrier_mean`: the largest height over the mean of the ends (Frankle et al. 2020). It is half of the fall where
      the loss falls from one end to the other. `rise_above_ends`: over the worse end; 0 for a monotone line.
    - `aligned/barrier` with `align`, and all of these under `aligned/`: with the other run's units permuted such that
      they are most like this run's, which leaves its function as it is. `aligned/moved_units`: share of units moved.
      With "weights" the search starts from the order found at the last measurement.
    - `distance`: L2 length of the line. `bn_gap`: change of this run's loss by re-estimating BatchNorm.
    - `path/max_loss` with `path`: the highest loss on a path that was trained to lie low, an upper bound of the lowest
      such height; with `path/length_over_chord` and `path/passes`, the passes over the samples spent on it.
    - `init_to_other/max_rise` with `cross`: the largest rise on the line from this run's initialisation to the other
      run (Lucas et al. 2021, arXiv:2104.11044); with `other_init` also `other_init_to_run/max_rise`.

    Cost: `num_alphas` forward passes over each probe set, and with BatchNorm the same again over the training samples;
    `align` and `cross` as much again each, with `other_init` twice; a path `path_steps` training steps and 41 points.

    Args:
        other: The other run: path of a Lightning checkpoint or of a saved state dict, a state dict, a module, or
            "wandb:entity/project/artifact:alias", which is downloaded when the fit is set up.
        align: Match units by their "weights" (Ainsworth et al. 2023, arXiv:2209.04836) or by "activations" on the
            training samples (Jordan et al. 2023, arXiv:2211.08403), and measure that line, too; a path ends there then.
        repair: Also measure that line with the outputs of units as spread as between the ends (REPAIR, the same paper).
        path: "bezier" (Garipov et al. 2018, arXiv:1802.10026) and "string" (Draxler et al. 2018, arXiv:1803.00885) also
            look for a path of low loss, at the end of the fit alone, by default with 2048 samples.
        path_steps: Gradients to take for it, each of one micro-batch.
        path_lr: Learning rate of these steps.
        cross: Also measure the line from this run's initialisation to the other run.
        other_init: The initialisation of the other run, in the same forms; with `cross`.
        num_alphas: Points on a line, both ends included.
        batch_norm: "recalibrate" re-estimates running statistics at every point, ends included; "eval" interpolates
            the statistics of the two runs.
        micro_batch_size: The re-estimation of BatchNorm, and a path, depend on it.

    All further arguments are those of `Probe`.

    Example:
        >>> import torch
        >>> data = torch.utils.data.TensorDataset(torch.randn(32, 2), torch.randn(32, 1))
        >>> run, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> probe = ModeConnectivity(other, loss_fn=lambda module, batch: (module(batch[0]) - batch[1]).square().mean())
        >>> probe.evaluate(run, data)["connectivity/barrier"].value  # the loss of a linear model is convex
        0.0
    """

    defaults = ProbeArguments(schedule=(LogSpacedSteps(2), AtFitEnd()), data=("train", "val"), name="connectivity")
    states = ("init_state", "other", "other_init")
    readings = MODE_CONNECTIVITY
    panels = MODE_CONNECTIVITY_PANELS
    headlines = MODE_CONNECTIVITY_HEADLINES

    def __init__(
        self, other: InitStateSource, *, align: Align | None = None, repair: bool = False, path: PathKind = "linear",
        path_steps: int = 400, path_lr: float = 0.05, cross: bool = False, other_init: InitStateSource | None = None,
        num_alphas: int = 11, batch_norm: BatchNormMode = "recalibrate",
        **shared: Unpack[ProbeArguments[DataSource | Sequence[DataSource]]],
    ) -> None:  # fmt: skip
        super().__init__(**with_path_defaults(path, shared))
        check_state("other", other)
        check_choice("batch_norm", batch_norm, ("recalibrate", "eval"))
        check_align(align, repair)
        check_path(path, path_steps, path_lr, self.schedule, batch_norm)
        check_crossing(cross, other_init)
        check_whole_number("num_alphas", num_alphas, least=2)
        self.align, self.repair = align, repair
        self.path, self.path_steps, self.path_lr = path, path_steps, path_lr
        self.other, self.other_init = other, other_init
        self.cross = self.needs_init_state = cross
        self.num_alphas, self.batch_norm = num_alphas, batch_norm
        if self.data == "val":
            self.panels = connectivity_panels({"": "Validation"})

    @property
    def price(self) -> Sequence[Price]:
        """A pass per point of each line; again, and some more, if BatchNorm is re-estimated."""
        crossing = int(self.cross) + int(self.other_init is not None)
        lines = price_of_lines(self.num_alphas, self.align, self.repair, crossing, self.batch_norm)
        return [*lines, *price_of_path(self.path)]

    def prepare(self, view: ModelView) -> None:
        """Read the other ends and compare them with the module, find units, and find out how to score logits."""
        if self.path != "linear":
            check_real(view, f"path={self.path!r} is found for", "path='linear'")
        read = partial(self.state, module=view.module, whole=True)
        self._ends = read_ends(view, read, self.batch_norm, self.cross)
        if self.batch_norm == "recalibrate":
            check_recalibration(view)
        self._groups = () if self.align is None else exchangeable(view, self.say)
        unasked = "val" if self.data == ("train", "val") else None
        self._scorer = Scorer(view, self.say, self.carried, may_leave_out=unasked)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples, and nothing is estimated on micro-batches."""
        estimates = self.repair or (self.batch_norm == "recalibrate" and batch_norms(pairs))
        return self.path == "linear" and not estimates and same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure the lines, and find a path."""
        connecting = Connecting(view, self._scorer, self.num_alphas, self.batch_norm)
        here, there = present(view), end_of(view, self._ends["other"])
        yield from connecting.line(here, there)
        yield from connecting.crossing(here, there, self._ends, self.cross)
        if self.align is not None:
            there = yield from connecting.matched(here, there, self._groups, self.align, self.repair, self.carried)
        if self.path != "linear":
            yield from detour(view, self._scorer, here, there, self.path, self.path_steps, self.path_lr)
