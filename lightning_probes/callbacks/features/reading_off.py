"""What can be read off each layer, over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_probes.callbacks.features.task import Task
from lightning_probes.functional.features.cka import permutations
from lightning_probes.functional.features.read_out import folds_of, read_classes, read_values
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.layer_features import LayerFeatures
from lightning_probes.probing.rows import rows_of_all
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray


class ReadOff(NamedTuple):
    """What can be read off each layer: accuracy for classes, R^2 for regression.

    Attributes:
        score: (layers,).
        standard_error: (layers,).
        null: (layers, permutations), the same for permuted targets.
        chance: What a prediction without features reaches: the share of the most frequent class, or 0.
        head: The network's own head; None if it predicts something else.
    """

    score: FloatArray
    standard_error: FloatArray
    null: FloatArray
    chance: float
    head: float | None


class _Own(NamedTuple):
    """Rows of this process's micro-batches, by the index of the micro-batch."""

    features: dict[str, dict[int, Tensor]]
    targets: dict[int, Tensor]
    outputs: dict[int, Tensor]


def read_off(view: ModelView, layers: LayerFeatures, task: Task, split: str, num_permutations: int) -> ReadOff:
    """Read the task off each layer. Cost: one forward pass, and about ten eigendecompositions' time for each layer.

    Every process gets all rows of a layer, and reads its share of the layers, so that the numbers do not depend on the
    number of processes.

    Args:
        view: The model.
        layers: The layers.
        task: What to read.
        split: The probe set.
        num_permutations: How often to permute the targets.
    """
    own = _look(view, layers, task, split)
    targets = rows_of_all(view, own.targets, task.width, split)
    outputs = rows_of_all(view, own.outputs, task.output_width, split)
    counted = task.counted(targets)
    targets, outputs = targets[counted], outputs[counted]
    (order,) = permutations(len(targets), 1, view.generator(0), targets.device)
    orders = permutations(len(targets), num_permutations, view.generator(view.step, 1), targets.device)
    folds = folds_of(order)
    _, labels, counts = torch.unique(targets[:, 0], return_inverse=True, return_counts=True)
    table = on_host(0.0).new_zeros(len(layers.widths), 2 + num_permutations)
    for number, (name, width) in enumerate(layers.widths.items()):
        rows = rows_of_all(view, own.features.pop(name), width, split)[counted]
        if number % view.processes.size == view.processes.rank:
            read = (
                read_classes(rows, labels, len(counts), folds, orders)
                if task.classes
                else read_values(rows, targets, folds, orders)
            )
            table[number] = on_host(read)
    score, error, *null = view.sum_over_processes(table).unbind(1)
    chance = int(counts.max()) / len(labels) if task.classes and len(counts) else 0.0
    return ReadOff(score.numpy(), error.numpy(), torch.stack(null, 1).numpy(), chance, task.head(outputs, targets))


def _look(view: ModelView, layers: LayerFeatures, task: Task, split: str) -> _Own:
    own = _Own({name: {} for name in layers.widths}, {}, {})  # all layers, in a process without samples too
    for batch in view.batches(split):
        with layers.watched(view, Tensor.clone) as found:
            logits, targets = view.detached.logits(batch)
        assert targets is not None
        own.targets[batch.index] = task.target_rows(targets)
        own.outputs[batch.index] = task.output_rows(logits)
        for name, width in layers.widths.items():
            own.features[name][batch.index] = _checked(found, name, width, batch.size, view.device)
    return own


def _checked(found: Mapping[str, Tensor], name: str, width: int, samples: int, device: torch.device) -> Tensor:
    """The rows of a layer on a micro-batch; NaN if it did not run.

    Raises:
        ValueError: If it returned something else than on the first micro-batch.
    """
    rows = found.get(name)
    if rows is None:
        return torch.full((samples, width), torch.nan, device=device)
    if rows.shape != (samples, width):
        raise ValueError(
            f"layer {name!r} returned {rows.shape[1]} features for {len(rows)} samples, and {width} for each of "
            f"{samples} were expected: choose other layers="
        )
    return rows
