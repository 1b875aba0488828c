"""Choosing layers of a model, and what they return for the samples of a probe."""

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
    """Layers that return one row of features a sample, in forward order.

    A module that is called several times is as many layers: `name`, `name#2`, and so on.

    Attributes:
        widths: How many features each layer has, by name.
        tokens: What of an output is taken; see `feature_matrix`.
        usable: How many layers "auto" has to choose from.
    """

    widths: Mapping[str, int]
    tokens: Tokens
    usable: int

    def look(
        self, view: ModelView, batch: MicroBatch, keep: Callable[[Tensor], Tensor],
        params: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What becomes of each layer's features on a micro-batch. Cost: a forward pass.

        For sums over processes, pass what is kept on to a `torchmetrics.Metric` made with `view.synced`.

        Args:
            view: The model.
            batch: One of this process's micro-batches.
            keep: Is given features, (samples, width), at the moment when their layer returns, without a graph; a layer
                behind it may overwrite them. So it returns a copy, or something smaller made of them.
            params: Parameters and buffers to run the model with; by default the present ones.

        Returns:
            What `keep` has returned, by name. A layer that this pass did not run is missing.
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
        layers: "auto" takes those that return something of their own with one row a sample, up to 32 evenly spaced in
            forward order; or names and globs.
        tokens: What of an output is taken; see `feature_matrix`.
        split: The probe set; by default the first.
        before: What "auto" chose earlier in this run, which it then chooses again: a layer that returns the same for
            every sample at the initialisation may not do so later.

    Raises:
        MisconfigurationException: If no layer can be used, a name matches none, or a layer that was asked for does not
            return one row a sample.
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
                    f"layers: {name!r} returns {found} for {batch.size} samples, and this probe needs one row a sample"
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
    """What the layers of one pass return.

    Attributes:
        tokens: See `feature_matrix`.
        rows: How many rows each layer returned; None where it returned no features.
        widths: And how many features.
        useless: Layers that return what another one has returned, or the same for all samples.
    """

    tokens: Tokens
    rows: dict[str, int | None] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    useless: set[str] = field(default_factory=set)
    _seen: set[tuple[int, ...]] = field(default_factory=set)
    _alive: list[Any] = field(default_factory=list)

    def on_output(self, name: str, output: Any) -> None:
        """A layer returns."""
        try:
            features = feature_matrix(output, self.tokens)
        except TypeError:
            self.rows[name] = None
            return
        self.rows[name], self.widths[name] = features.shape
        # A container returns what its last layer returned, dropout in eval mode what it was given, and an embedding of
        # token types the same for all samples.
        identity = (features.data_ptr(), features._version, *features.shape)
        if identity in self._seen or not (features != features[:1]).any():
            self.useless.add(name)
        self._seen.add(identity)
        self._alive.append(output)  # so that no later output gets the same address
