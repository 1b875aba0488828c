"""Whether intermediate layers hold what the last one lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import Unpack

from lightning_probes.callbacks.features.labelled_features import LabelledFeatures, class_task
from lightning_probes.callbacks.features.pictures import HEAD2TOE_HEADLINES, HEAD2TOE_PANELS
from lightning_probes.callbacks.features.readings import HEAD2TOE
from lightning_probes.callbacks.features.samples import usable_split, validation_or_training
from lightning_probes.functional.features.against_last import against_last, three_parts
from lightning_probes.functional.features.feature_selection import FRACTIONS
from lightning_probes.functional.features.linear_head import TOLERANCE
from lightning_probes.functional.features.pooling import TokenPooling
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.arguments import PredictionArguments, ProbeArguments
from lightning_probes.probing.checks import check_logits
from lightning_probes.probing.data.drawing import DataSource, DataSources
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_logits
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.schedules import AtFitEnd
from lightning_probes.probing.values import check_choice, check_names, check_number, check_whole_number, refuse
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Curve, Flag, Result, Scalar

_FEWEST = 12  # samples


class Head2Toe(Probe):
    r"""Accuracy of a linear head on selected features of all layers, against one on what the network's last layer gets.

    Nothing of the network is trained (Evci et al. 2022, arXiv:2201.03529). The features of each layer are pooled, and
    are vectors of length 1 for each sample. A head with a group lasso, :math:`c \sum_i \|W_i\|` over the features
    :math:`i`, gives the relevance :math:`\|W_i\|^2`; the most relevant features are kept, and a head without lasso is
    fitted on these. Half of the samples fits all heads, a quarter chooses the fraction of features and the ridge, and
    the last quarter is scored.

    Validation samples are the default, because a network's last layers separate samples that it was trained on.
    `head2toe` makes a module from the selection, for data of another task.

    Reports:

    - `gap`: accuracy of the head on the kept features minus that of the head on the last layer's input. The standard
      error is over samples, of the paired difference.
    - `kept`: share of the features that are kept.
    - `relevance`: a curve over depth, each layer's share of the relevance.
    - `accuracy`, `last`: the two accuracies. `residual`: of the worst of all fits.

    Cost: one forward pass, and about as many products with the matrix of all features as its heads take steps: some
    thousands.

    Args:
        layers: "auto" chooses up to 32 of the submodules that run, evenly spaced in forward order; or names and globs.
        tokens: "auto" averages tokens, or positions of a convolution, over cells of a grid; "mean" over all of them;
            "cls" takes the first token.
        max_features: Number of cells times channels of a layer, at most. Channels are never mixed: a layer with more of
            them has one cell.
        fraction: Share of the features to keep; by default the best of 0.01, 0.03, 0.1, 0.3 and 1 on the quarter that
            chooses.
        penalty: The group lasso, as a share of the smallest one that makes all weights 0. At least 0 and below 1.
        data: None for the validation data of the run, or its training data if it has none.
        num_samples: At least 12.
        loss_fn: Not used.
        predict_fn: May return any labels in place of the targets, to see where something else can be read off.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> signals = torch.randn(200, 4)
        >>> data = torch.utils.data.TensorDataset(signals, (signals[:, 0] > 0).long())
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> results = Head2Toe().evaluate(network, data)
        >>> results["head2toe/accuracy"].value > 0.7
        True
    """

    defaults = ProbeArguments(schedule=AtFitEnd(), data=None, num_samples=2048, name="head2toe")
    chooses_data: ClassVar[bool] = True
    price = (Price(forward=1),)
    readings = HEAD2TOE
    panels = HEAD2TOE_PANELS
    headlines = HEAD2TOE_HEADLINES

    def __init__(
        self,
        *,
        layers: str | Sequence[str] = "auto",
        tokens: TokenPooling = "auto",
        max_features: int = 64,
        fraction: float | None = None,
        penalty: float = 0.05,
        **shared: Unpack[PredictionArguments[DataSource | None]],
    ) -> None:
        super().__init__(**shared)
        check_names("layers", layers)
        check_choice("tokens", tokens, ("auto", "mean", "cls"))
        check_whole_number("max_features", max_features, least=1)
        check_number("fraction", fraction, above=0, optional=True)
        if fraction is not None and fraction > 1:
            refuse("fraction", "a number above 0 and at most 1", fraction, optional=True)
        check_number("penalty", penalty, least=0)
        if penalty >= 1:
            refuse("penalty", "a number of at least 0 and below 1", penalty)
        self.layers, self.tokens, self.max_features = layers, tokens, max_features
        self.fraction, self.penalty = fraction, penalty

    def prepare(self, view: ModelView) -> None:
        """Check that there is one class for each sample, and choose the layers."""
        self._split = usable_split(view, self.say, self.data is None, self._check)
        self._features = LabelledFeatures.choose(
            view, self.layers, self.tokens, self.max_features, self._split, self.carried.get("layers", [])
        )
        if self.layers == "auto":
            self.carried["layers"] = [*self._features.layers.widths]

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether a sample has the same logits whatever its micro-batch."""
        return same_logits(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Select features, and compare with the last layer."""
        samples, last = self._features.read(view, self._split)
        found = on_host(0.0).new_zeros(6 + len(self._features.layers.widths))
        if view.processes.rank == 0:  # the others get its numbers
            parts = three_parts(len(samples.labels), view.generator(0))
            compared = against_last(samples, last, parts, self.penalty, self.fractions)
            shares = self._features.by_layer(compared.relevance / compared.relevance.sum())
            found = on_host([*compared[:6], *shares])
        accuracy, of_last, gap, error, kept, residual, *shares = view.sum_over_processes(found).tolist()
        depth = np.linspace(0, 1, len(shares)) if len(shares) > 1 else np.ones(1)
        yield Curve(
            "relevance", depth, np.array(shares), "depth (0 = first layer, 1 = last)", "share of relevance (no unit)"
        )
        yield Scalar("gap", gap, error)
        yield Scalar("kept", kept, detail=True)
        yield Scalar("accuracy", accuracy, detail=True)
        yield Scalar("last", of_last, detail=True)
        yield Scalar("residual", residual, detail=True)
        yield Flag(
            "not_converged", not residual <= TOLERANCE, residual, TOLERANCE,
            "a linear head is not at its minimum: a selection from it is a rough one",
        )  # fmt: skip

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions to choose from."""
        return FRACTIONS if self.fraction is None else (self.fraction,)

    def sources(self, run: Run) -> DataSources:
        """By default validation data, and training data in case the model can't run on validation data."""
        return validation_or_training(run) if self.data is None else super().sources(run)

    def _check(self, view: ModelView, split: str) -> None:
        check_logits(view, split)
        class_task(view, split)
        found = view.probe_set(split).num_samples
        if found < _FEWEST:
            raise MisconfigurationException(
                f"a selection of features needs at least {_FEWEST} samples, and has {found}: pass a larger "
                "num_samples=, or other data="
            )
