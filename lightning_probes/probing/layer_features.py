"""Choosing layers of a model, and their features for the samples of a probe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes.functional.features.channels import Channels
from lightning_probes.functional.features.feature_matrix import Tokens, feature_matrix, features_of
from lightning_probes.functional.features.pooling import Pooling, TokenPooling
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.layers import select_layers, watch_layers
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting.panels.base import thin

_MOST_LAYERS = 32


Rows: TypeAlias = Callable[[object], Tensor]
"""Makes one row of features per sample from a layer's return value."""
RowsOf: TypeAlias = Callable[[Tensor, int], Rows]
"""Makes a layer's `Rows` from the features of its first output and the axis of their channels."""


def unpooled(tokens: Tokens) -> RowsOf:
    """All features of a layer, or those of a part of its tokens; see `feature_matrix`."""
    return lambda features, axis: partial(feature_matrix, tokens=tokens)


def pooled(tokens: TokenPooling, most: int) -> RowsOf:
    """At most `most` features of a layer, as averages over cells of positions or tokens; see `Pooling`."""
    return lambda features, axis: Pooling.fit(features, axis, tokens, most)


_ALL = unpooled("flatten")


@dataclass(frozen=True)
class LayerFeatures:
    """Layers that return one row of features per sample, in forward order.

    A module that is called several times counts as several layers: `name`, `name#2`, and so on.

    Attributes:
        widths: Number of features of each layer, by name.
        rows: Makes the features from a layer's return value, by name.
        usable: Number of layers from which "auto" chooses.
    """

    widths: Mapping[str, int]
    rows: Mapping[str, Rows]
    usable: int

    def look(
        self, view: ModelView, batch: MicroBatch, keep: Callable[[Tensor], Tensor],
        params: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Process each layer's features on a micro-batch. Cost: one forward pass.

        For sums over processes, pass the results to a `torchmetrics.Metric` created with `view.synced`. For the rows of
        all samples, see `rows_of_all`.

        Args:
            view: The model.
            batch: One of this process's micro-batches.
            keep: See `watched`.
            params: Parameters and buffers to run the model with; by default the current ones.

        Returns:
            The results of `keep`, by name. Layers that did not run in this pass are missing.
        """
        with self.watched(view, keep) as found:
            view.detached.run_layers(batch, params)
        return found

    @contextmanager
    def watched(self, view: ModelView, keep: Callable[[Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
        """Process each layer's features in the pass that is made inside this context.

        Args:
            view: The model.
            keep: Called with the features, (samples, width), when their layer returns, without a graph. A later layer
                may overwrite them, so return a copy, or a smaller result computed from them.

        Yields:
            The results of `keep`, by name, which the pass fills in.
        """
        found: dict[str, Tensor] = {}

        def on_output(name: str, output: Any) -> None:
            if name in self.rows:
                found[name] = keep(self.rows[name](output))

        with watch_layers(view.module, on_output):
            yield found


def run_layers(view: ModelView, batch: MicroBatch) -> None:
    """The pass in which layers are watched if there is no reason for another one."""
    view.run_layers(batch)


def choose_layers(
    view: ModelView, layers: Literal["auto"] | Sequence[str], rows_of: RowsOf = _ALL, split: str | None = None,
    before: Sequence[str] = (), run: Callable[[ModelView, MicroBatch], object] = run_layers,
) -> LayerFeatures:  # fmt: skip
    """Run the model on one micro-batch, and choose from the layers that ran.

    Args:
        view: The model.
        layers: "auto" chooses up to 32 layers with their own output and one row per sample, evenly spaced in forward
            order; or names and globs.
        rows_of: The features to use: `unpooled` or `pooled`; by default all of them.
        split: The probe set; by default the first.
        before: The earlier choice of "auto" in this run, which it repeats: a layer that returns the same for every
            sample at the initialisation may not do so later.
        run: The pass in which the layers run.

    Raises:
        MisconfigurationException: If no layer can be used, a name matches no layer, or a named layer does not return
            one row per sample.
    """
    batch = view.probe_set(split).first
    ran = _Ran(rows_of, dict(view.module.named_modules()))
    with watch_layers(view.module, ran.on_output):
        run(view.detached, batch)
    rightly_long = [name for name, samples in ran.samples.items() if samples == batch.size]
    # Processes that read shards of the data look at different samples here.
    useless = set().union(*view.processes.everyone(ran.useless))
    usable = [name for name in rightly_long if name not in useless]
    if layers != "auto":
        chosen = select_layers(layers, list(ran.samples))
        for name in chosen:
            if ran.samples[name] != batch.size:
                found = "no tensor" if ran.samples[name] is None else f"{ran.samples[name]} rows"
                raise MisconfigurationException(
                    f"layers: {name!r} returns {found} for {batch.size} samples, and this probe needs one row per "
                    "sample"
                )
        return ran.features_of(chosen, len(usable))
    if not usable:
        raise MisconfigurationException(
            f"no layer returns one row for each of {batch.size} samples (the model ran {len(ran.samples)} layers): "
            "pass loss_fn= or predict_fn= that runs the model on the batch"
        )
    chosen = [name for name in before if name in rightly_long] or thin(usable, _MOST_LAYERS)
    return ran.features_of(chosen, len(usable))


@dataclass
class _Ran:
    """The outputs of the layers in one pass.

    Attributes:
        rows_of: See `choose_layers`.
        modules: The modules by name.
        samples: Number of rows that each layer returned; None if it returned no features.
        widths: Number of features of each layer.
        rows: Makes the features of each layer.
        useless: Layers that return the output of another layer, or the same features for all samples.
    """

    rows_of: RowsOf
    modules: Mapping[str, nn.Module]
    samples: dict[str, int | None] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    useless: set[str] = field(default_factory=set)
    _channels: Channels = field(default_factory=Channels)
    _seen: set[tuple[int, ...]] = field(default_factory=set)
    _alive: list[Any] = field(default_factory=list)

    def on_output(self, name: str, output: Any) -> None:
        """Record the output of a layer."""
        try:
            whole = features_of(output)
        except TypeError:
            self.samples[name] = None
            return
        rows = self.rows[name] = self.rows_of(whole, self._channels.axis(self._module(name), whole))
        features = rows(output)
        self.samples[name], self.widths[name] = features.shape
        # A container returns the output of its last layer, dropout in eval mode returns its input, and an embedding of
        # token types returns the same for all samples.
        identity = (whole.data_ptr(), whole._version, len(whole), whole[:1].numel())
        if identity in self._seen or not (features != features[:1]).any():
            self.useless.add(name)
        self._seen.add(identity)
        self._alive.append(output)  # so that no later output reuses the address

    def features_of(self, chosen: Sequence[str], usable: int) -> LayerFeatures:
        """The features of some of the layers."""
        widths = {name: self.widths[name] for name in chosen}
        return LayerFeatures(widths, {name: self.rows[name] for name in chosen}, usable)

    def _module(self, name: str) -> nn.Module | None:
        """The module of a call; a second call has a number behind the module's name."""
        return self.modules.get(name) or self.modules.get(re.sub(r"#+\d+$", "", name))
