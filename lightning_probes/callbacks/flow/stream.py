"""The residual stream of a model: which blocks add to it, and how much, from products of every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.callbacks.flow.gathering import median, of_every_sample
from lightning_probes.functional.flow.stream_products import Products, StreamProducts
from lightning_probes.functional.tracing.additions import Course, Unseen, follow_additions
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray


@dataclass(frozen=True)
class Stream:
    """What blocks add to the stream, from the products of every sample; see `Products`.

    Attributes:
        course: The additions.
        products: By the name of the block: (products, samples).
    """

    course: Course
    products: dict[str, FloatArray]

    def ratios(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile of ‖f‖/‖z‖ for each block, but for those that add 0 to 0 for all samples."""
        found = {}
        for name, (skip, branch, *_) in self.products.items():
            defined = (skip != 0) | (branch != 0)
            if defined.any():
                with np.errstate(divide="ignore"):
                    ratio = branch[defined] / skip[defined]
                found[name] = float(np.median(ratio)), float(np.quantile(ratio, 0.95))
        return found

    def cosines(self) -> dict[str, float]:
        """Median of cos(f, z) for each block, but for those where f or z is 0 for all samples."""
        found = {}
        for name, (skip, branch, along, *_) in self.products.items():
            if (cosine := _quotient(along, skip * branch)) is not None:
                found[name] = cosine
        return found

    def turn(self) -> float | None:
        """Median of cos(f, f of the block before) over the pairs of blocks of all stages and over samples."""
        additions, turns = self.course.additions, []
        for addition in additions:
            if addition.before is not None:
                here, before = self.products[addition.name], self.products[additions[addition.before].name]
                if here.shape == before.shape:
                    turns.append((here[3], here[1] * before[1]))
        return _quotient(*map(np.concatenate, zip(*turns, strict=True))) if turns else None

    def path_length(self) -> float | None:
        """Median of the length of the way from the first to the last skip operand, over their distance.

        In the longest stage; None if it has only one block.
        """
        stage = max(self.course.stages, key=len)
        blocks = [self.products[self.course.additions[position].name] for position in stage]
        if len(stage) < 2 or len({block.shape for block in blocks}) > 1:
            return None
        return _quotient(np.sum([block[4] for block in blocks], axis=0), blocks[-1][5])


def _quotient(above: FloatArray, below: FloatArray) -> float | None:
    """Median of a quotient over the samples for which it is defined."""
    defined = below != 0
    return median(above[defined] / below[defined])


def find_blocks(view: ModelView, split: str | None = None) -> Course:
    """The residual additions of a pass over the first micro-batch, with gradients on; the same in every process.

    Cost: one forward pass over this micro-batch.
    """
    batch = view.probe_set(split).first
    course, _ = follow_additions(view.module, batch.size, lambda: run_with_graph(view, batch), Unseen)
    return view.processes.from_first(course)


def check_blocks(view: ModelView, course: Course) -> None:
    """Check that there are residual additions.

    Raises:
        MisconfigurationException: If there are none; the message offers another probe.
    """
    if not course.additions:
        raise MisconfigurationException(
            f"no sum of a skip connection and a branch with parameters was found in {type(view.module).__name__}: use "
            "GradientFlow, which needs none, or, if compiled, scripted or fused code hides one, pass loss_fn= (or "
            "predict_fn=) that runs the model without it"
        )


def run_with_graph(view: ModelView, batch: MicroBatch) -> torch.Tensor:
    """The loss (or else the logits) of a micro-batch, with a graph that begins at all parameters, also frozen ones."""
    params = {
        name: parameter.detach().requires_grad_(parameter.is_floating_point())
        for name, parameter in view.module.named_parameters()
    }
    return view.loss(params, batch) if view.has_loss() else view.logits(batch, params)[0]


def look_at_stream(view: ModelView, course: Course, cls: bool) -> Sequence[Stream]:
    """Follow passes over all micro-batches.

    Args:
        view: The model.
        course: The additions, see `find_blocks`.
        cls: Whether to separate the first token.

    Returns:
        The stream; with `cls` that of all tokens but the first, and that of the first.
    """
    found: dict[int, dict[str, torch.Tensor]] = {}
    parts = 1 + cls
    for batch in view.batches():
        run, visitor = partial(view.detached.run_layers, batch), partial(StreamProducts, batch.size, cls)
        _, seen = follow_additions(view.module, batch.size, run, visitor, course)
        assert isinstance(seen, StreamProducts)
        found[batch.index] = {
            name: torch.stack([value for part in products for value in part]) for name, products in seen.found.items()
        }
    width = len(Products._fields)
    names = [addition.name for addition in course.additions]
    values = of_every_sample(view, names, found, parts * width)
    return [
        Stream(course, {name: each[part * width : (part + 1) * width] for name, each in values.items()})
        for part in range(parts)
    ]
