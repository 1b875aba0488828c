"""How far each attention head looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from typing_extensions import Unpack

from lightning_probes.callbacks.features.attention_layers import AttentionLayers, attention_heads
from lightning_probes.callbacks.features.pictures import ATTENTION_DISTANCE_HEADLINES, ATTENTION_DISTANCE_PANELS
from lightning_probes.callbacks.features.readings import ATTENTION_DISTANCE
from lightning_probes.callbacks.features.samples import usable_split, validation_or_training
from lightning_probes.callbacks.features.token_places import common_spacing
from lightning_probes.functional.features.attention_distance import Sums
from lightning_probes.metrics.mean_estimate import estimate_mean
from lightning_probes.probing.arguments import PredictionArguments, ProbeArguments
from lightning_probes.probing.data.drawing import DataSource, DataSources
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_logits, same_mean_loss
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.schedules import AtFitEnd, LogSpacedSteps
from lightning_probes.probing.values import check_names, check_number, check_switch, check_whole_number, refuse
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray, Heatmap, Result, Scalar


class AttentionDistance(Probe):
    r"""Mean distance between a query and the keys that it attends to, for each head.

    .. math:: \frac{1}{|Q|} \sum_{i \in Q} \sum_j a_{ij} D_{ij}

    with the attention weights a and the distances D between tokens, over the queries Q of all samples (Dosovitskiy et
    al. 2021, arXiv:2010.11929; Raghu et al. 2021, arXiv:2108.08810). A head that attends to all tokens alike has the
    distance `uniform`, one that attends to the token itself has 0. Tokens are cells of an image's grid or of a
    sequence. A CLS token and registers have no place: their rows and columns are left out, and the other weights are
    divided by their sum. Padding is left out. Attention within windows has distances within a window.

    The module is not touched: the pass is watched for `scaled_dot_product_attention`, `nn.MultiheadAttention`, and
    softmax results that multiply values. Layers whose queries and keys differ in number are left out.

    Reports, over all heads:

    - `mean`, with its standard error over micro-batches, `min` and `max` of the distance.
    - `uniform`: the distance if all keys that a query may attend to had equal weights.
    - `entropy` of the weights in nats, without leading tokens.
    - `cls_mass`: the weight of the leading tokens, if there are any.

    Cost: one forward pass, and one product of queries and keys for each layer of `scaled_dot_product_attention`.

    Args:
        layers: "auto" for all layers in which tokens attend to each other; or names and globs.
        grid: Number of tokens along each axis, such as (14, 14). By default it is read from the convolution that makes
            the patches, a square for other images, and one axis for sequences.
        patch_size: Distance between neighbouring tokens. By default the stride of that convolution, in pixels; or 1.
        prefix_tokens: Number of leading tokens without a place. "auto" finds those that are joined to a sequence of
            patches; the tokens of a text all have places.
        renormalize: Whether weights are divided by their sum without the leading tokens. If not, attention to leading
            tokens counts as distance 0.
        data: None for the validation data of the run, or its training data if it has none.
        loss_fn: Any function that runs the layers works.
        predict_fn: Used if there is no loss to replay.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> AttentionDistance(grid=(14, 14), patch_size=16).grid
        (14, 14)
    """

    defaults = ProbeArguments(schedule=(LogSpacedSteps(4), AtFitEnd()), data=None, num_samples=128, name="attention")
    chooses_data: ClassVar[bool] = True
    price = (Price(forward=1),)
    readings = ATTENTION_DISTANCE
    panels = ATTENTION_DISTANCE_PANELS
    headlines = ATTENTION_DISTANCE_HEADLINES

    def __init__(
        self,
        *,
        layers: str | Sequence[str] = "auto",
        grid: Sequence[int] | None = None,
        patch_size: float | None = None,
        prefix_tokens: Literal["auto"] | int = "auto",
        renormalize: bool = True,
        **shared: Unpack[PredictionArguments[DataSource | None]],
    ) -> None:
        super().__init__(**shared)
        check_names("layers", layers)
        if grid is not None:
            if not isinstance(grid, (list, tuple)) or not 1 <= len(grid) <= 3:
                refuse("grid", "one to three whole numbers such as (14, 14)", grid, optional=True)
            for size in grid:
                check_whole_number("grid", size, least=1)
        check_number("patch_size", patch_size, above=0, optional=True)
        if prefix_tokens != "auto":
            check_whole_number("prefix_tokens", prefix_tokens)
        check_switch("renormalize", renormalize)
        self.layers, self.patch_size = layers, patch_size
        self.grid = None if grid is None else tuple(grid)
        self.prefix_tokens, self.renormalize = prefix_tokens, renormalize

    def prepare(self, view: ModelView) -> None:
        """Check that passes are repeatable, and find the attention layers and the places of their tokens."""
        self._split = usable_split(view, self.say, self.data is None)
        heads, seen = attention_heads(view, self.layers, self._split)
        self._layers = AttentionLayers(heads, self.grid, self.prefix_tokens, self.renormalize)
        _, places = self._layers.look(view, view.probe_set(self._split).first)
        # Processes that read shards of the data look at different samples here.
        places = view.processes.from_first(places)
        self._scale = common_spacing([*places.values()]) if self.patch_size is None else self.patch_size
        self._has_prefix = any(where.prefix for where in places.values())
        found = ", ".join(f"{layer} ({where})" for layer, where in places.items())
        self.say.info(
            f"measuring {len(places)} of {seen} attention layers, with {self._scale:g} between tokens: {found}"
        )

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether the network treats each sample by itself."""
        return (same_mean_loss if pairs.has_loss() else same_logits)(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Measure distances."""
        sums = {batch.index: self._layers.look(view, batch)[0] for batch in view.batches(self._split)}
        heads = self._layers.heads
        by_batch = view.of_all(sums, self._split, (sum(heads.values()), len(Sums))).numpy()
        distances, uniform, entropy, prefix, _ = _means(by_batch.sum(0))
        yield _by_layer(self._scale * distances, heads)
        sizes = view.probe_set(self._split).sizes
        error = estimate_mean(torch.from_numpy(_means(by_batch)[0].mean(-1)), sizes).standard_error
        yield Scalar("mean", self._scale * distances.mean(), None if error is None else self._scale * error)
        yield Scalar("min", self._scale * distances.min(), detail=True)
        yield Scalar("max", self._scale * distances.max(), detail=True)
        yield Scalar("uniform", self._scale * uniform.mean(), detail=True)
        yield Scalar("entropy", entropy.mean(), detail=True)
        if self._has_prefix:
            yield Scalar("cls_mass", prefix.mean(), detail=True)

    def sources(self, run: Run) -> DataSources:
        """By default validation data, and training data in case the model can't run on validation data."""
        return validation_or_training(run) if self.data is None else super().sources(run)


def _means(sums: FloatArray) -> FloatArray:
    """Means over queries, first: nan for a head without queries."""
    with np.errstate(invalid="ignore"):
        means: FloatArray = np.moveaxis(sums / sums[..., Sums.QUERIES, None], -1, 0)
    return means


def _by_layer(distances: FloatArray, heads: Mapping[str, int]) -> Heatmap:
    """A row of sorted heads for each layer. Those of a layer with fewer heads than others fill several columns."""
    most = max(heads.values())
    ends = np.cumsum([*heads.values()])[:-1]
    rows = [np.sort(row)[np.arange(most) * len(row) // most] for row in np.split(distances, ends)]
    return Heatmap("distance", np.stack(rows), [*heads], [str(1 + head) for head in range(most)])
