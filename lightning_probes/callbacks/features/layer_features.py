"""Choosing layers of a model, and their features for the samples of a probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.functional.features.feature_matrix import Tokens, feature_matrix
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.layers import select_layers, watch_layers
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting.panels.base import thin

_MOST_LAYERS = 32


@dataclass(frozen=True)
class LayerFeatures:
    """Layers that return one row of features per sample, in forward order.

    A module that is called several times counts as several layers: `name`, `name#2`, and so on.

    Attributes:
        widths: Number of features of each layer, by name.
        tokens: The part of an output to use; see `feature_matrix`.
        usable: Number of layers from which "auto" chooses.
    """

    widths: Mapping[str, int]
    tokens: Tokens
    usable: int

    def look(
        self, view: ModelView, batch: MicroBatch, keep: Callable[[Tensor], Tensor],
        params: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Process each layer's features on a micro-batch. Cost: one forward pass.

        For sums over processes, pass the results to a `torchmetrics.Metric` created with `view.synced`.

        Args:
            view: The model.
            batch: One of this process's micro-batches.
            keep: Called with the features, (samples, width), when their layer returns, without a graph. A later layer
                may overwrite them, so return a copy, or a smaller result computed from them.
            params: Parameters and buffers to run the model with; by default the current ones.

        Returns:
            The results of `keep`, by name. Layers that did not run in this pass are missing.
        """
        found: dict[str, Tensor] = {}

        def on_output(name: str, output: Any) -> None:
            if name in self.widths:
                found[name] = keep(feature_matrix(output, self.tokens))

        with watch_layers(view.module, on_output):
            view.detached.run_layers(batch, params)
        return found


def choose_layers(
    view: ModelView, layers: Literal["auto"] | Sequence[str], tokens: Tokens = "flatten", split: str | None = None,
    before: Sequence[str] = (),
) -> LayerFeatures:  # fmt: skip
    """Run the model on one micro-batch, and choose from the layers that ran.

    Args:
        view: The model.
        layers: "auto" chooses up to 32 layers with their own output and one row per sample, evenly spaced in forward
            order; or names and globs.
        tokens: The part of an output to use; see `feature_matrix`.
        split: The probe set; by default the first.
        before: The earlier choice of "auto" in this run, which it repeats: a layer that returns the same for every
            sample at the initialisation may not do so later.

    Raises:
        MisconfigurationException: If no layer can be used, a name matches no layer, or a named layer does not return
            one row per sample.
    """
    batch = view.probe_set(split).first
    ran = _Ran(tokens)
    with watch_layers(view.module, ran.on_output):
        view.detached.run_layers(batch)
    rightly_long = [name for name, rows in ran.rows.items() if rows == batch.size]
    usable = [name for name in rightly_long if name not in ran.useless]
    if layers != "auto":
        chosen = select_layers(layers, list(ran.rows))
        for name in chosen:
            if ran.rows[name] != batch.size:
                found = "no tensor" if ran.rows[name] is None else f"{ran.rows[name]} rows"
                raise MisconfigurationException(
                    f"layers: {name!r} returns {found} for {batch.size} samples, and this probe needs one row per "
                    "sample"
                )
        return LayerFeatures({name: ran.widths[name] for name in chosen}, tokens, len(usable))
    if not usable:
        raise MisconfigurationException(
            f"no layer returns one row for each of {batch.size} samples (the model ran {len(ran.rows)} layers): pass "
            "loss_fn= or predict_fn= that runs the model on the batch"
        )
    chosen = [name for name in before if name in rightly_long] or thin(usable, _MOST_LAYERS)
    return LayerFeatures({name: ran.widths[name] for name in chosen}, tokens, len(usable))


@dataclass
class _Ran:
    """The outputs of the layers in one pass.

    Attributes:
        tokens: See `feature_matrix`.
        rows: Number of rows that each layer returned; None if it returned no features.
        widths: Number of features of each layer.
        useless: Layers that return the output of another layer, or the same output for all samples.
    """

    tokens: Tokens
    rows: dict[str, int | None] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    useless: set[str] = field(default_factory=set)
    _seen: set[tuple[int, ...]] = field(default_factory=set)
    _alive: list[Any] = field(default_factory=list)

    def on_output(self, name: str, output: Any) -> None:
        """Record the output of a layer."""
        try:
            features = feature_matrix(output, self.tokens)
        except TypeError:
            self.rows[name] = None
            return
        self.rows[name], self.widths[name] = features.shape
        # A container returns the output of its last layer, dropout in eval mode returns its input, and an embedding of
        # token types returns the same for all samples.
        identity = (features.data_ptr(), features._version, *features.shape)
        if identity in self._seen or not (features != features[:1]).any():
            self.useless.add(name)
        self._seen.add(identity)
        self._alive.append(output)  # so that no later output reuses the address
