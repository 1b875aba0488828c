"""Similarity of layers to each other, and of each layer to itself at initialisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import Unpack

from lightning_probes.callbacks.features.layer_features import choose_layers
from lightning_probes.callbacks.features.readings import LAYER_CKA
from lightning_probes.functional.features.feature_matrix import Tokens
from lightning_probes.functional.features.layer_hsic import (
    BatchHSIC,
    Form,
    Layers,
    all_on_host,
    all_pairs,
    counterparts,
)
from lightning_probes.metrics import CKA, MinibatchCKA
from lightning_probes.probing.arguments import ProbeArguments
from lightning_probes.probing.checks import check_logits, check_loss
from lightning_probes.probing.data.drawing import DataSource, MicroBatch
from lightning_probes.probing.layers import layer_keys
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.init_state import StateDict
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_choice, check_names, check_switch
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import HeatmapOverSteps, Heatmaps, Lines, Panel
from lightning_probes.results import Heatmap, Result, Scalar

_FEWEST = 4  # samples in a micro-batch, for the estimate to be unbiased
_PERMUTATIONS = 10


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
    shuffled.

    Cost: one forward pass over the samples, and one more at the first measurement for the initialisation.

    Args:
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
    needs_init_state: ClassVar[bool] = True
    chooses_data: ClassVar[bool] = True
    price = (
        Price(forward=1),
        Price(forward=1, copies=1, only="at the first event, if the initialisation is known"),
    )
    readings = LAYER_CKA
    panels: tuple[Panel, ...] = (
        Heatmaps(
            "layers",
            "Linear CKA between layers (no unit)",
            "Below null_p95 = unrelated; 1 = equal up to rotation and scale. Similar is not good, nor unlike bad.",
            caveat="What a layer computes, or how well: a few directions of large variance can decide the value, and "
            "similar layers may be used for different things.",
        ),
        HeatmapOverSteps(
            "to_init",
            "Linear CKA of each layer with itself at initialisation (no unit)",
            "1 = unchanged up to rotation and scale; below null_p95 = unrelated. A change need not be learning.",
            caveat="Whether a change is useful: a layer may drift without learning, and one that stays may serve.",
        ),
    )

    headlines: tuple[Lines, ...] = (
        Lines(
            "to_init_mean", "Linear CKA with the initialisation, mean over layers (no unit)",
            "1 = unchanged up to rotation and scale; below null_p95 = unrelated. A change need not be learning.",
            y="to_init_mean", y_label="to_init_mean (no unit)", log_x=True,
            caveat="Which layers have changed: see the heatmap of each layer.",
        ),
        Lines(
            "null_p95", "95th percentile of linear CKA when samples are shuffled (no unit)",
            "A similarity below it is none.", y="null_p95", y_label="null_p95 (no unit)", log_x=True,
            caveat="A quality of the model: it depends on num_samples and micro_batch_size.",
        ),
    )  # fmt: skip

    def __init__(
        self,
        *,
        layers: str | Sequence[str] = "auto",
        tokens: Tokens = "flatten",
        per_layer: bool = False,
        **shared: Unpack[ProbeArguments[DataSource | None]],
    ) -> None:
        super().__init__(**shared)
        check_names("layers", layers)
        check_choice("tokens", tokens, ("flatten", "mean", "cls"))
        check_switch("per_layer", per_layer)
        self.layers = layers
        self.tokens = tokens
        self.per_layer = per_layer
        self._initial: tuple[StateDict | None, list[Layers]] = (None, [])

    def prepare(self, view: ModelView) -> None:
        """Check the sizes of micro-batches and that passes are repeatable, and choose the layers."""
        self._split = self._usable_split(view)
        self._check_sizes(view.probe_set(self._split).sizes)
        before = self.carried.get("layers", [])
        self._layers = choose_layers(view, self.layers, self.tokens, self._split, before)
        if self.layers == "auto":
            self.carried["layers"] = names = [*self._layers.widths]
            self.say.info(f"comparing {len(names)} of {self._layers.usable} layers: {', '.join(names)}")
        self._initial = (None, [])  # earlier ones belong to other data or layers

    def _check_sizes(self, sizes: Sequence[int]) -> None:
        if sum(sizes) < _FEWEST <= self.num_samples:
            raise MisconfigurationException(
                f"the data has {sum(sizes)} samples, but unbiased CKA needs at least {_FEWEST}: leave LayerCKA out, or "
                "pass other data="
            )
        if min(sizes) < _FEWEST:
            raise MisconfigurationException(
                f"unbiased CKA needs at least {_FEWEST} samples in every micro-batch, but one has {min(sizes)} of the "
                f"{sum(sizes)} in total: pass a larger micro_batch_size= (and num_samples=), or, if batches can't be "
                "split, data= with larger ones"
            )

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Compare layers."""
        names = [*self._layers.widths]
        initial = self._at_initialisation(view)
        between: list[BatchHSIC] = []
        to_init: list[BatchHSIC] = []
        for index, batch in enumerate(view.batches(self._split)):
            layers = self._look_at(view, batch)
            between.append(all_pairs(layers, view.generator(view.step, batch.index), _PERMUTATIONS))
            if initial is not None:
                to_init.append(counterparts(layers, initial[index].to(view.device)))

        similarity = _cka(view, between, (len(names), len(names)), _PERMUTATIONS)
        yield Heatmap("layers", similarity.values, names, names)
        yield Scalar("null_p95", float(np.quantile(similarity.null, 0.95)))
        if initial is not None:
            kept = _cka(view, to_init, (len(names), 1, 1)).values[:, 0, 0]
            yield Heatmap("to_init", kept[:, None], names, (str(view.step),))
            yield Scalar("to_init_mean", float(kept.mean()))
            if self.per_layer:
                keys = layer_keys(names)
                yield from (Scalar(f"layer/{keys[name]}", float(v)) for name, v in zip(names, kept, strict=True))

    def sources(self, run: Run) -> Sequence[DataSource]:
        """By default validation data, and training data in case the model does not run on the former."""
        if self.data is None:
            return ["val", "train"] if run.has_data("val") else ["train"]
        return super().sources(run)

    def _usable_split(self, view: ModelView) -> str:
        """The probe set to measure on: validation data by default, or training data if the model can't run on it."""
        check = check_loss if view.has_loss() else check_logits
        if self.data is None and "val" in view.data:
            try:
                check(view, "val")
            except MisconfigurationException as error:
                self.say.info(f"measuring on training data: {error}")
            else:
                return "val"
        split = next(iter(view.data))
        check(view, split)
        return split

    def _look_at(self, view: ModelView, batch: MicroBatch, params: StateDict | None = None) -> Layers:
        """The chosen layers on a micro-batch: as Gram matrices, or as features if they are narrow."""
        widths = self._layers.widths
        form = Form.cheapest([*widths.values()], view.probe_set(self._split).first.size, view.device)
        found = self._layers.look(view, batch, form.keep, params)
        return form.gather([found.get(name) for name in widths], batch.size, view.device)

    def _at_initialisation(self, view: ModelView) -> list[Layers] | None:
        """The layers at the initialisation, one entry per micro-batch; computed once and kept on the CPU."""
        if view.init_state is None:
            return None
        state, initial = self._initial
        if state is not view.init_state:
            params, cpu = view.initial(), torch.device("cpu")
            initial = [self._look_at(view, batch, params).to(cpu) for batch in view.batches(self._split)]
            self._initial = (view.init_state, initial)
        return initial


def _cka(view: ModelView, batches: Sequence[BatchHSIC], shape: tuple[int, ...], num_permutations: int = 0) -> CKA:
    """CKA over micro-batches and processes."""
    cka = MinibatchCKA(shape, num_permutations, **view.synced)
    for batch in all_on_host(batches):
        cka.update(batch)
    return cka.compute()
