"""What each residual block adds to the stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from typing_extensions import Unpack

from lightning_probes.callbacks.flow.pictures import RESIDUAL_FLOW_HEADLINES, RESIDUAL_FLOW_PANELS
from lightning_probes.callbacks.flow.readings import RESIDUAL_FLOW
from lightning_probes.callbacks.flow.stream import Stream, check_blocks, find_blocks, look_at_stream
from lightning_probes.probing.arguments import PredictionArguments, ProbeArguments
from lightning_probes.probing.checks import check_logits, check_loss
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.halving import same_logits, same_mean_loss
from lightning_probes.probing.schedules import LogSpacedSteps
from lightning_probes.probing.values import check_choice
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Heatmap, Result, Scalar


class ResidualFlow(Probe):
    r"""What each residual block adds to the stream: how much, in which direction, and how straight the way is.

    .. math:: z_{l+1} = z_l + f_l(z_l), \qquad \frac{\lVert f_l \rVert}{\lVert z_l \rVert}

    for each sample, all its tokens together; then the median over samples (Raghu et al. 2021, arXiv:2108.08810, for
    the inverse ratio in vision transformers). The blocks are found by following the data through a pass: sums of a skip
    connection and a branch with parameters, in any module. A projection on the skip connection is part of it. Gated
    skips and concatenations are no residual additions.

    Reports:

    - `ratio`: a heatmap of the ratio of each block over steps; `ratio_median` and `ratio_max` are its median and
      maximum over blocks, `ratio_p95` the largest 95th percentile over samples.
    - `turn`: the cosine of the angle between what a block and the block before it add, in a stage of constant shape:
      the median over pairs and samples. `cosine` is that of the angle between a branch and its skip connection.
    - `path_length`: the length of the way from the first skip connection to the last in the longest stage, over their
      distance: 1 for a straight way.
    - `blocks`: the number of blocks. The run's config has their names.

    Cost: one forward pass.

    Args:
        tokens: "flatten" takes all tokens of a sample together. "cls" is for (samples, tokens, dim) streams whose first
            token stands for the sample: plain keys are then without it, and ``cls/…`` is that token.
        loss_fn: Any function that runs the model works.
        predict_fn: Used if there is no loss to replay.

    All further arguments are those of `Probe`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> ResidualFlow(tokens="cls").name
        'residual'
    """

    defaults = ProbeArguments(schedule=LogSpacedSteps(4), num_samples=128, name="residual")
    price = (
        Price(forward=1),
        Price(forward=1, only="where a pass takes another course than the first one, which is followed anew"),
    )
    readings = RESIDUAL_FLOW
    panels = RESIDUAL_FLOW_PANELS
    headlines = RESIDUAL_FLOW_HEADLINES

    def __init__(self, *, tokens: Literal["flatten", "cls"] = "flatten", **shared: Unpack[PredictionArguments]) -> None:
        super().__init__(**shared)
        check_choice("tokens", tokens, ("flatten", "cls"))
        self.tokens = tokens

    def prepare(self, view: ModelView) -> None:
        """Check that passes are repeatable, and find the blocks."""
        (check_loss if view.has_loss() else check_logits)(view)
        self._course = find_blocks(view)
        check_blocks(view, self._course)
        names = [addition.name for addition in self._course.additions]
        self.recorded = {**type(self).recorded, "blocks": names}
        self.say.info(f"found {len(names)} residual additions, of the branches {', '.join(names)}")

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """Whether a sample has the same loss or logits in a batch of two as alone."""
        return (same_mean_loss if pairs.has_loss() else same_logits)(pairs, singles)

    def measure(self, view: ModelView) -> Iterator[Result]:
        """Look at all residual additions."""
        streams = look_at_stream(view, self._course, self.tokens == "cls")
        for prefix, stream in zip(("", "cls/"), streams, strict=False):
            yield from _results(view.step, prefix, stream)
        yield Scalar("blocks", len(self._course.additions), detail=True)


def _results(step: int, prefix: str, stream: Stream) -> Iterator[Result]:
    ratios, cosines = stream.ratios(), stream.cosines()
    medians = [middle for middle, _ in ratios.values()]
    if medians:
        yield Heatmap(f"{prefix}ratio", np.array(medians)[:, None], [*ratios], (str(step),))
        yield Scalar(f"{prefix}ratio_median", np.median(medians), detail=bool(prefix))
        yield Scalar(f"{prefix}ratio_max", max(medians), detail=True)
        yield Scalar(f"{prefix}ratio_p95", max(high for _, high in ratios.values()), detail=True)
    if cosines:
        yield Scalar(f"{prefix}cosine", np.median([*cosines.values()]), detail=True)
    if (turn := stream.turn()) is not None:
        yield Scalar(f"{prefix}turn", turn, detail=True)
    if (length := stream.path_length()) is not None:
        yield Scalar(f"{prefix}path_length", length, detail=True)
