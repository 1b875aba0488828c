"""What a linear classifier or regression reads off each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import Unpack

from lightning_probes.callbacks.features.over_depth import by_layer, over_depth
from lightning_probes.callbacks.features.pictures import LINEAR_PROBES_HEADLINES, LINEAR_PROBES_PANELS
from lightning_probes.callbacks.features.reading_off import read_off
from lightning_probes.callbacks.features.readings import LINEAR_PROBES
from lightning_probes.callbacks.features.samples import usable_split, validation_or_training
from lightning_probes.callbacks.features.task import Task, TaskName
from lightning_probes.functional.features.pooling import TokenPooling
from lightning_probes.functional.features.read_out import FEWEST
from lightning_probes.probing.arguments import PredictionArguments, ProbeArguments
from lightning_probes.probing.checks import check_logits
from lightning_probes.probing.data.drawing import DataSource, DataSources
from lightning_probes.probing.layer_features import choose_layers, pooled
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_logits
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_choice, check_names, check_switch, check_whole_number
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result

_PERMUTATIONS = 5


class LinearProbes(Probe):
    r"""Accuracy of a linear classifier on the features of each layer, on samples that it has not seen.

    Nothing is trained by gradients, and the network stays as it is (Alain and Bengio 2016, arXiv:1610.01644). The
    samples are in five folds. For each fold a ridge regression of the labels is fitted on the other four, with the
    penalty that has the smallest exact leave-one-out error there, and a linear discriminant analysis of the fitted
    values decides. For regression the score is :math:`R^2` of the ridge regression.

    Validation samples are the default, because samples that the network was trained on show what it has memorised:
    its upper layers separate these samples whether or not they do so with others.

    Reports:

    - `last`, `best`: accuracy on the last layer in forward order, and on the best one. Standard errors are binomial, or
      over samples for :math:`R^2`. `best` is the largest of several estimates, so it is a little too large.
    - `best_depth`: the place of the best layer, from 0 for the first to 1 for the last.
    - `null_p95`: the level reached by chance: 95th percentile over layers and five permutations of the labels.
    - `chance`: share of the most frequent class. `head`: accuracy of the network's own output on the same samples.
      `gap`: `best` minus `head`.
    - `layer/<name>`: with `per_layer`, each layer.

    Cost: one forward pass, and for each layer about the time of twenty eigendecompositions of its feature covariance.

    Args:
        layers: "auto" chooses up to 32 of the submodules that run, evenly spaced in forward order; or names and globs.
        tokens: "auto" averages tokens, or positions of a convolution, over cells of a grid; "mean" over all of them;
            "cls" takes the first token.
        max_features: Number of cells times channels, at most. Channels are never mixed: a layer with more of them has
            one cell.
        task: "classes" for one label for each sample, "regression" for real targets; "auto" chooses by their type.
        per_layer: Also report ``layer/<name>``.
        data: None for the validation data of the run, or its training data if it has none.
        num_samples: At least 10. A layer needs four times as many samples as it has features, or its accuracy is
            underestimated.
        loss_fn: Not used.
        predict_fn: May return any labels in place of the targets, to see where something else can be read off.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> signals = torch.randn(100, 4)
        >>> data = torch.utils.data.TensorDataset(signals, signals[:, 0] > 0)
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> results = LinearProbes(num_samples=100).evaluate(network, data)
        >>> results["linear/best"].value > results["linear/null_p95"].value
        True
    """

    defaults = ProbeArguments(schedule=(LogSpacedSteps(2), AtFitEnd()), data=None, num_samples=2048, name="linear")
    chooses_data: ClassVar[bool] = True
    price = (Price(forward=1),)
    readings = LINEAR_PROBES
    panels = LINEAR_PROBES_PANELS
    headlines = LINEAR_PROBES_HEADLINES

    def __init__(
        self,
        *,
        layers: str | Sequence[str] = "auto",
        tokens: TokenPooling = "auto",
        max_features: int = 256,
        task: TaskName = "auto",
        per_layer: bool = False,
        **shared: Unpack[PredictionArguments[DataSource | None]],
    ) -> None:
        super().__init__(**shared)
        check_names("layers", layers)
        check_choice("tokens", tokens, ("auto", "mean", "cls"))
        check_whole_number("max_features", max_features, least=1)
        check_choice("task", task, ("auto", "classes", "regression"))
        check_switch("per_layer", per_layer)
        self.layers, self.tokens, self.max_features = layers, tokens, max_features
        self.task, self.per_layer = task, per_layer

    def prepare(self, view: ModelView) -> None:
        """Check that there is one label for each sample, and choose the layers."""
        self._split = usable_split(view, self.say, self.data is None, self._check)
        if self.data is None and self._split == "train":
            self.say.info("without validation data, accuracy includes what the network has memorised of these samples")
        self._task = self._read_task(view, self._split)
        rows, before = pooled(self.tokens, self.max_features), self.carried.get("layers", [])
        self._layers = choose_layers(view, self.layers, rows, self._split, before, ModelView.logits)
        names = [*self._layers.widths]
        if self.layers == "auto":
            self.carried["layers"] = names
            self.say.info(f"reading off {len(names)} of {self._layers.usable} layers: {', '.join(names)}")
        self._warn_of_few_samples(view.probe_set(self._split).num_samples)

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether a sample has the same logits whatever its micro-batch."""
        return same_logits(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Read the labels off each layer."""
        read = read_off(view, self._layers, self._task, self._split, _PERMUTATIONS)
        yield from over_depth(read, [*self._layers.widths], view.step, "accuracy" if self._task.classes else "R²")
        if self.per_layer:
            yield from by_layer(read, [*self._layers.widths])

    def sources(self, run: Run) -> DataSources:
        """By default validation data, and training data in case the model can't run on validation data."""
        return validation_or_training(run) if self.data is None else super().sources(run)

    def _check(self, view: ModelView, split: str) -> None:
        check_logits(view, split)
        self._read_task(view, split)
        found = view.probe_set(split).num_samples
        if found < FEWEST:
            raise MisconfigurationException(
                f"linear probes need at least {FEWEST} samples, and have {found}: pass a larger num_samples=, or other "
                "data="
            )

    def _read_task(self, view: ModelView, split: str) -> Task:
        return Task.of(self.task, *view.detached.logits(view.probe_set(split).first))

    def _warn_of_few_samples(self, found: int) -> None:
        widest = max(self._layers.widths, key=lambda name: self._layers.widths[name])
        width = self._layers.widths[widest]
        if found < 4 * width:
            self.say.warn(
                f"{found} samples are few for the {width} features of layer {widest!r}, and what can be read off such "
                f"layers is underestimated: pass num_samples={4 * width} and enough data, or a smaller max_features="
            )
