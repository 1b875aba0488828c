"""The attention layers of a model, and what their heads do on a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.callbacks.features.token_places import Places, Shapes
from lightning_probes.functional.features.attention_distance import Sums, distance_sums, grid_distances
from lightning_probes.functional.tracing.attention import AttentionMap, watch_attention
from lightning_probes.functional.wide import widest
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.layers import select_layers
from lightning_probes.probing.view import ModelView


def attention_heads(view: ModelView, layers: str | Sequence[str], split: str) -> tuple[dict[str, int], int]:
    """Run the model on one micro-batch, and choose from its attention layers.

    Returns:
        The number of heads of each chosen layer, and the number of all layers that were seen.

    Raises:
        MisconfigurationException: If no layer can be used, or a name matches none that can.
    """
    seen: dict[str, AttentionMap] = {}
    batch = view.probe_set(split).first
    with watch_attention(view.module, batch.size, seen.__setitem__):
        view.detached.run_layers(batch)
    if not seen:
        raise MisconfigurationException(
            "no attention was seen in a forward pass, so leave this probe out if the model has none; if a fused kernel "
            'or compiled code hides it, build the model with attn_implementation="sdpa", or call '
            "scaled_dot_product_attention"
        )
    usable = [layer for layer, each in seen.items() if each.queries == each.keys > 1]
    if not usable:
        raise MisconfigurationException(
            f"queries and keys differ in number in each of {len(seen)} attention layers, so there is no distance "
            "between them: leave this probe out"
        )
    chosen = usable if layers == "auto" else select_layers(layers, usable)
    return view.processes.from_first({layer: seen[layer].heads for layer in chosen}), len(seen)


@dataclass(frozen=True)
class AttentionLayers:
    """Attention layers, in forward order.

    Attributes:
        heads: Number of heads of each layer, by name.
        grid: The grid of tokens, if the user has given it.
        prefix: The number of leading tokens, or "auto".
        renormalize: See `distance_sums`.
    """

    heads: Mapping[str, int]
    grid: tuple[int, ...] | None = None
    prefix: Literal["auto"] | int = "auto"
    renormalize: bool = True

    def look(self, view: ModelView, batch: MicroBatch) -> tuple[Tensor, dict[str, Places]]:
        """Sums over the queries of a micro-batch. Cost: one forward pass.

        Args:
            view: The model.
            batch: One of this process's micro-batches.

        Returns:
            The sums for the heads of all layers, `(heads, len(Sums))`, with 0 for a layer that did not run; and where
            the tokens of each layer are.
        """
        shapes = Shapes(batch.size, self.grid, self.prefix)
        sums: dict[str, Tensor] = {}
        places: dict[str, Places] = {}

        def on_map(layer: str, seen: AttentionMap) -> None:
            if self.heads.get(layer) != seen.heads or seen.queries != seen.keys:
                return
            places[layer] = where = shapes.places(seen.keys)
            distances = grid_distances(where.grid).to(view.device)
            for weights, opened in seen.parts():
                part = distance_sums(weights, opened, distances, where.prefix, self.renormalize)
                sums[layer] = sums[layer] + part if layer in sums else part

        with watch_attention(view.module, batch.size, on_map, shapes.on_enter, shapes.on_other):
            view.detached.run_layers(batch)
        kind = widest(view.device)
        none = {
            layer: torch.zeros(heads, len(Sums), dtype=kind, device=view.device) for layer, heads in self.heads.items()
        }
        return torch.cat([*(none | sums).values()]), places
