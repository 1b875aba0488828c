"""The loss between this run and another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import Unpack

from lightning_probes.callbacks.paths.batch_norm import batch_norms, check_recalibration
from lightning_probes.callbacks.paths.connecting import Connecting, price_of_lines
from lightning_probes.callbacks.paths.detour import PathKind, check_path, detour, price_of_path
from lightning_probes.callbacks.paths.ends import check_end, end_of, start_of
from lightning_probes.callbacks.paths.path import BatchNormMode, present
from lightning_probes.callbacks.paths.pictures import MODE_CONNECTIVITY_PANELS
from lightning_probes.callbacks.paths.readings import MODE_CONNECTIVITY
from lightning_probes.callbacks.paths.scores import Scorer
from lightning_probes.probing.arguments import ProbeArguments, check_state
from lightning_probes.probing.data.drawing import DataSource
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_mean_loss
from lightning_probes.probing.run.init_state import InitStateSource
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_choice, check_number, check_switch, check_whole_number
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result


class ModeConnectivity(Probe):
    r"""Loss and error on the line from this run to another one of the same architecture.

    .. math:: L(\theta(\alpha)), \quad \theta(\alpha) = (1 - \alpha) \theta + \alpha \theta_{other}

    at `num_alphas` evenly spaced points, both ends exact. The two are linearly connected if the loss does not rise on
    the line (Frankle et al. 2020, arXiv:1912.05671).

    Reports for the loss, and for the error under `error_...`, on the training samples, and as details on the validation
    samples under `val/`. Standard errors are over micro-batches, paired: of the highest point against the ends.

    - `barrier`: the largest height over the chord, max over alpha of
      :math:`L(\alpha) - ((1 - \alpha) L(0) + \alpha L(1))` (Entezari et al. 2022, arXiv:2110.06296).
    - `barrier_mean`: the largest height over the mean of the ends (Frankle et al. 2020). It is half of the fall where
      the loss falls from one end to the other. `rise_above_ends`: over the worse end; 0 for a monotone line.
    - `distance`: L2 length of the line; buffers do not count. `bn_gap`: change of the loss at this run's end by
      re-estimating BatchNorm.
    - `path/max_loss` with `path`: the highest loss on a path that was trained to lie low, an upper bound of the lowest
      such height; with `path/length_over_chord` and `path/passes`, the passes over the samples spent on it.
    - `init_to_other/max_rise` with `cross`: the largest rise on the line from this run's initialisation to the other
      run (Lucas et al. 2021, arXiv:2104.11044); with `other_init` also `other_init_to_run/max_rise`.

    Cost: `num_alphas` forward passes over each probe set, and with BatchNorm the same again over the training samples;
    `cross` as much again, with `other_init` twice; a path `path_steps` training steps and 41 points.

    Args:
        other: The other run: path of a Lightning checkpoint or of a saved state dict, a state dict, a module, or
            "wandb:entity/project/artifact:alias", which is downloaded when the fit is set up.
        path: "bezier" (Garipov et al. 2018, arXiv:1802.10026) and "string" (Draxler et al. 2018, arXiv:1803.00885) also
            look for a path of low loss, at the end of the fit alone, by default with 2048 samples.
        path_steps: Gradients to take for it, each of one micro-batch.
        path_lr: Learning rate of these steps.
        cross: Also measure the line from this run's initialisation to the other run.
        other_init: The initialisation of the other run, in the same forms; with `cross`.
        num_alphas: Points on a line, both ends included.
        batch_norm: "recalibrate" re-estimates running statistics at every point, ends included; "eval" interpolates
            the statistics of the two runs.
        data: "train", "val", or both; your own loader or dataset replaces the training samples.
        num_samples: Number of samples in each probe set.
        micro_batch_size: The re-estimation of BatchNorm, and a path, depend on it.
        predict_fn: There is an error only for logits of classes.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range, or a path is to be found at other times than the end of the fit.

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

    def __init__(
        self,
        other: InitStateSource,
        *,
        path: PathKind = "linear",
        path_steps: int = 400,
        path_lr: float = 0.05,
        cross: bool = False,
        other_init: InitStateSource | None = None,
        num_alphas: int = 11,
        batch_norm: BatchNormMode = "recalibrate",
        **shared: Unpack[ProbeArguments[DataSource | Sequence[DataSource]]],
    ) -> None:
        check_choice("path", path, ("linear", "bezier", "string"))
        if path != "linear":
            shared = {"schedule": AtFitEnd(), "num_samples": 2048, **shared}
        super().__init__(**shared)
        check_state("other", other)
        check_whole_number("path_steps", path_steps, least=1)
        check_number("path_lr", path_lr, above=0)
        check_switch("cross", cross)
        check_state("other_init", other_init, optional=True)
        check_whole_number("num_alphas", num_alphas, least=2)
        check_choice("batch_norm", batch_norm, ("recalibrate", "eval"))
        if other_init is not None and not cross:
            raise ValueError("other_init= is for lines from initialisations: pass cross=True with it")
        check_path(path, self.schedule, batch_norm)
        self.path, self.path_steps, self.path_lr = path, path_steps, path_lr
        self.other, self.other_init = other, other_init
        self.cross = self.needs_init_state = cross
        self.num_alphas, self.batch_norm = num_alphas, batch_norm

    @property
    def price(self) -> Sequence[Price]:
        """A pass per point of each line; again, and one more, if BatchNorm is re-estimated."""
        crossing = int(self.cross) + int(self.other_init is not None)
        return price_of_lines(self.num_alphas, crossing, self.batch_norm) + price_of_path(self.path)

    def prepare(self, view: ModelView) -> None:
        """Read the other ends and compare them with the module, and find out how to score logits."""
        if self.cross and view.init_state is None and view.run.is_single:
            raise MisconfigurationException("there is no initialisation to start the line from: pass init_state=")
        self._ends = {name: self.state(name, view.module, whole=True) or {} for name in ("other", "other_init")}
        for name, state in filter(all, self._ends.items()):
            check_end(view, state, self.batch_norm, name)
        if self.batch_norm == "recalibrate":
            check_recalibration(view)
        unasked = "val" if self.data == ("train", "val") else None
        self._scorer = Scorer(view, self.say, self.carried, may_leave_out=unasked)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the loss is a mean over samples and no BatchNorm statistics are estimated on micro-batches."""
        recalibrates = self.batch_norm == "recalibrate" and batch_norms(pairs)
        return self.path == "linear" and not recalibrates and same_mean_loss(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure the line to the other run, and those from the initialisations."""
        connecting = Connecting(view, self._scorer, self.num_alphas, self.batch_norm)
        here, there = present(view), end_of(view, self._ends["other"])
        yield from connecting.line(here, there)
        if self.cross and (start := start_of(view)):
            yield from connecting.rise(start, there, "init_to_other")
        if self._ends["other_init"]:
            start = end_of(view, self._ends["other_init"])
            yield from connecting.rise(start, here, "other_init_to_run")
        if self.path != "linear":
            yield from detour(view, self._scorer, here, there, self.path, self.path_steps, self.path_lr)
