"""Similarity of layers to each other, and of each layer to itself at initialisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from lightning_probes.callbacks.features.other_network import OtherNetwork
from lightning_probes.callbacks.features.pictures import LAYER_CKA_HEADLINES, LAYER_CKA_OTHER_PANELS, LAYER_CKA_PANELS
from lightning_probes.callbacks.features.readings import LAYER_CKA
from lightning_probes.callbacks.features.samples import usable_split, validation_or_training
from lightning_probes.callbacks.features.similarity import check_sizes, cka_over, look_at, off_diagonal_mean
from lightning_probes.functional.features.feature_matrix import Tokens
from lightning_probes.functional.features.layer_hsic import BatchHSIC, Layers, across, all_pairs, counterparts
from lightning_probes.probing.arguments import ProbeArguments, check_state
from lightning_probes.probing.data.drawing import DataSource, DataSources
from lightning_probes.probing.layer_features import choose_layers, unpooled
from lightning_probes.probing.layers import layer_keys
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.init_state import InitStateSource, StateDict
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_choice, check_names, check_switch
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import Panel
from lightning_probes.results import Heatmap, Result, Scalar

_PERMUTATIONS, _FEWER, _MANY_LAYERS = 10, 5, 16  # pairs of layers under one permutation depend on each other


class LayerCKA(Probe):
    r"""Linear CKA of every chosen layer with every other, and of each layer with itself at initialisation.

    .. math:: \mathrm{CKA}(X, Y) = \frac{\sum_b n_b \mathrm{HSIC}_1(X_b, Y_b)}
              {\sqrt{\sum_b n_b \mathrm{HSIC}_1(X_b, X_b) \sum_b n_b \mathrm{HSIC}_1(Y_b, Y_b)}}

    with the unbiased HSIC summed over micro-batches of n_b samples before dividing (Kornblith et al. 2019,
    arXiv:1905.00414; Nguyen et al. 2021, arXiv:2010.15327). The value depends on the micro-batch size, which is
    recorded with the run.
    CKA of unrelated layers is near 0 and may be negative. Modules run in eval mode; a module called twice counts as two
    layers, `name` and `name#2`.

    Reports `to_init_mean`, the mean over layers of the similarity to the initialisation (if that is known), and
    `null_p95`, the level reached by chance: the 95th percentile of the CKA between layers when the samples of one are
    shuffled. A detail is `off_diagonal_mean`, the mean similarity of two different layers.

    With `other`, also compares with the layers of another network on the same samples: the heatmap `to_other` has each
    layer of this network beside each layer of the other one, and `to_other_mean` is the mean over the layers of this
    network of the similarity to the most similar layer of the other one.

    Cost: one forward pass over the samples, and one more at the first measurement each for the initialisation and for
    the other network.

    Args:
        other: A module of any architecture that runs on the samples; or another state of this network: path of a
            Lightning checkpoint or of a saved state dict, a state dict, or "wandb:entity/project/artifact:alias".
        other_layers: The layers of another module, as in `layers`.
        layers: "auto" chooses up to 32 of the submodules that run, evenly spaced in forward order; or names and globs.
        tokens: The part of a (samples, tokens, dim) output to compare: "flatten" for all of it, the "mean" over tokens,
            or the first token ("cls").
        per_layer: Also report ``layer/<name>``, each layer's similarity to itself at initialisation.
        data: None for the validation data of the run, or its training data if it has none.
        micro_batch_size: At least 4 samples.
        loss_fn: Any function that runs the layers works.
        predict_fn: Used if there is no loss to replay.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> LayerCKA(layers=["encoder.*"], tokens="mean").tokens
        'mean'
    """

    defaults = ProbeArguments(schedule=(LogSpacedSteps(4), AtFitEnd()), data=None, name="cka")
    needs_init_state = True
    states = ("init_state", "other")
    chooses_data: ClassVar[bool] = True
    readings = LAYER_CKA
    panels: tuple[Panel, ...] = LAYER_CKA_PANELS
    headlines = LAYER_CKA_HEADLINES

    def __init__(
        self,
        *,
        layers: str | Sequence[str] = "auto",
        tokens: Tokens = "flatten",
        per_layer: bool = False,
        other: InitStateSource | None = None,
        other_layers: str | Sequence[str] = "auto",
        **shared: Unpack[ProbeArguments[DataSource | None]],
    ) -> None:
        super().__init__(**shared)
        check_names("layers", layers)
        check_choice("tokens", tokens, ("flatten", "mean", "cls"))
        check_switch("per_layer", per_layer)
        check_state("other", other, optional=True)
        check_names("other_layers", other_layers)
        self.layers, self.tokens, self.per_layer = layers, tokens, per_layer
        self.other, self.other_layers = other, other_layers
        if other is not None:
            self.panels = (*self.panels, *LAYER_CKA_OTHER_PANELS)
        self._initial: tuple[StateDict | None, list[Layers]] = (None, [])
        self._there: list[Layers] | None = None

    @property
    def price(self) -> Sequence[Price]:
        """A pass, and at the first event one for each network that does not change."""
        items = [
            Price(forward=1),
            Price(forward=1, copies=1, only="at the first event, if the initialisation is known"),
        ]
        if self.other is not None:
            items.append(Price(forward=1, copies=1, only="at the first event"))
        return items

    def prepare(self, view: ModelView) -> None:
        """Check the sizes of micro-batches and that passes are repeatable, and choose the layers."""
        self._split = usable_split(view, self.say, self.data is None)
        check_sizes(view.probe_set(self._split).sizes, self.num_samples)
        before = self.carried.get("layers", [])
        self._layers = choose_layers(view, self.layers, unpooled(self.tokens), self._split, before)
        if self.layers == "auto":
            self.carried["layers"] = names = [*self._layers.widths]
            self.say.info(f"comparing {len(names)} of {self._layers.usable} layers: {', '.join(names)}")
        self._initial = (None, [])  # earlier ones belong to other data or layers
        self._other, self._there = self._network(view), None

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Compare layers."""
        names = [*self._layers.widths]
        shuffles = _FEWER if len(names) > _MANY_LAYERS else _PERMUTATIONS
        initial = self._at_initialisation(view)
        if self._other is not None and self._there is None:
            self._there = self._other.look(view, self._split)
        between: list[BatchHSIC] = []
        to_init: list[BatchHSIC] = []
        to_other: list[BatchHSIC] = []
        for index, batch in enumerate(view.batches(self._split)):
            layers = look_at(view, self._layers, batch, self._split)
            between.append(all_pairs(layers, view.generator(view.step, batch.index), shuffles))
            if initial is not None:
                to_init.append(counterparts(layers, initial[index].to(view.device)))
            if self._there is not None:
                to_other.append(across(layers, self._there[index].to(view.device)))

        similarity = cka_over(view, between, (len(names), len(names)), shuffles)
        yield Heatmap("layers", similarity.values, names, names)
        if len(names) > 1:
            yield Scalar("off_diagonal_mean", off_diagonal_mean(similarity.values), detail=True)
        yield Scalar("null_p95", float(np.quantile(similarity.null, 0.95)))
        if initial is not None:
            kept = cka_over(view, to_init, (len(names), 1, 1)).values[:, 0, 0]
            yield Heatmap("to_init", kept[:, None], names, (str(view.step),))
            yield Scalar("to_init_mean", float(kept.mean()))
            if self.per_layer:
                keys = layer_keys(names)
                yield from (Scalar(f"layer/{keys[name]}", float(v)) for name, v in zip(names, kept, strict=True))
        if self._other is not None:
            others = [*self._other.layers.widths]
            similar = cka_over(view, to_other, (len(names), len(others))).values
            yield Heatmap("to_other", similar, names, others)
            yield Scalar("to_other_mean", float(similar.max(1).mean()))

    def sources(self, run: Run) -> DataSources:
        """By default validation data, and training data in case the model can't run on validation data."""
        return validation_or_training(run) if self.data is None else super().sources(run)

    def _network(self, view: ModelView) -> OtherNetwork | None:
        """The other network, and its layers."""
        if isinstance(self.other, nn.Module):
            before = self.carried.get("other_layers", [])
            found = OtherNetwork.of(view, self.other, self.other_layers, self.tokens, self._split, before)
            self.carried["other_layers"] = [*found.layers.widths]
            return found
        state = self.state("other", view.module)
        return None if state is None else OtherNetwork(self._layers, state=state)

    def _at_initialisation(self, view: ModelView) -> list[Layers] | None:
        """The layers at the initialisation, one entry per micro-batch; computed once and kept on the CPU."""
        if view.init_state is None:
            return None
        state, initial = self._initial
        if state is not view.init_state:
            params, cpu, batches = view.initial(), torch.device("cpu"), view.batches(self._split)
            initial = [look_at(view, self._layers, batch, self._split, params).to(cpu) for batch in batches]
            self._initial = (view.init_state, initial)
        return initial
