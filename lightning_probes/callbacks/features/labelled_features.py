"""The features of all layers for labelled samples, and what the last layer gets, over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_probes.callbacks.features.task import Task
from lightning_probes.functional.features.channels import Channels
from lightning_probes.functional.features.feature_matrix import features_of
from lightning_probes.functional.features.feature_selection import Labelled, unit_rows
from lightning_probes.functional.features.pooling import Pooling, TokenPooling
from lightning_probes.probing.layer_features import LayerFeatures, choose_layers, pooled
from lightning_probes.probing.rows import rows_of_all
from lightning_probes.probing.view import ModelView


class LastInput(NamedTuple):
    """What the last layer with parameters gets: what the network's own head sees.

    Attributes:
        layer: Its name.
        pooling: Makes rows of features of its input.
        width: Number of features.
    """

    layer: str
    pooling: Pooling
    width: int

    @classmethod
    def find(cls, view: ModelView, split: str, tokens: TokenPooling, most: int) -> LastInput | None:
        """The last layer that runs on a micro-batch; None if its input is not one row for each sample."""
        modules = dict(view.module.named_modules())
        inputs: list[tuple[str, Tensor]] = []

        def see(name: str, layer: nn.Module, args: Any) -> None:
            try:
                inputs.append((name, features_of(args)))
            except TypeError:
                inputs.clear()

        names = [name for name, layer in modules.items() if name and [*layer.parameters(recurse=False)]]
        batch = view.probe_set(split).first
        with _watched_inputs(view.module, names, see):
            view.detached.logits(batch)
        if not inputs or len(inputs[-1][1]) != batch.size:
            return None
        name, features = inputs[-1]
        pooling = Pooling.fit(features, Channels().axis(modules[name], features), tokens, most)
        return cls(name, pooling, pooling(features).shape[1])


@dataclass(frozen=True)
class LabelledFeatures:
    """How to read the features of samples and their labels.

    Attributes:
        layers: The layers.
        task: What the labels are.
        last: What the network's own head sees; None for the features of the last layer.
    """

    layers: LayerFeatures
    task: Task
    last: LastInput | None

    @classmethod
    def choose(
        cls, view: ModelView, layers: Literal["auto"] | Sequence[str], tokens: TokenPooling, most: int, split: str,
        before: Sequence[str] = (),
    ) -> LabelledFeatures:  # fmt: skip
        """Run the model on one micro-batch, and choose the layers.

        Raises:
            MisconfigurationException: If there is not one class for each sample, or no layer can be used.
        """
        task = class_task(view, split)
        chosen = choose_layers(view, layers, pooled(tokens, most), split, before, ModelView.logits)
        return cls(chosen, task, LastInput.find(view, split, tokens, most))

    def read(self, view: ModelView, split: str) -> tuple[Labelled, Tensor]:
        """The features of all samples with a label, and what the last layer gets. Cost: one forward pass.

        The features of a layer are vectors of length 1 for each sample, one layer after the other. Every process gets
        all rows.
        """
        # All layers, in a process without samples too.
        features: dict[str, dict[int, Tensor]] = {name: {} for name in ("", *self.layers.widths)}
        labels: dict[int, Tensor] = {}
        for batch in view.batches(split):
            inputs: list[Tensor] = []
            with self.layers.watched(view, Tensor.clone) as found, self._watched_last(view, inputs):
                _, targets = view.detached.logits(batch)
            assert targets is not None
            labels[batch.index] = self.task.target_rows(targets)
            for name, width in self.layers.widths.items():
                features[name][batch.index] = _checked(found.get(name), name, width, batch.size)
            if self.last is not None:
                rows = inputs[-1] if inputs else None
                features[""][batch.index] = _checked(rows, self.last.layer, self.last.width, batch.size)
        targets = rows_of_all(view, labels, self.task.width, split)
        counted = self.task.counted(targets)

        def unit(name: str, width: int) -> Tensor:
            return unit_rows(rows_of_all(view, features.pop(name), width, split)[counted])

        of_layers = {name: unit(name, width) for name, width in self.layers.widths.items()}
        last = [*of_layers.values()][-1] if self.last is None else unit("", self.last.width)
        return Labelled(torch.cat([*of_layers.values()], 1), targets[counted, 0].long()), last

    @contextmanager
    def _watched_last(self, view: ModelView, inputs: list[Tensor]) -> Iterator[None]:
        if self.last is None:
            yield
            return
        pooling = self.last.pooling
        with _watched_inputs(view.module, [self.last.layer], lambda *call: inputs.append(pooling(call[2]).clone())):
            yield

    def by_layer(self, values: Tensor) -> list[float]:
        """The sum of a value of each feature over the features of each layer."""
        return [float(part.sum()) for part in torch.split(values, [*self.layers.widths.values()])]


def class_task(view: ModelView, split: str) -> Task:
    """The task of a set, which must be classes.

    Raises:
        MisconfigurationException: If there is not one class for each sample; the message names `predict_fn`.
    """
    task = Task.of("auto", *view.detached.logits(view.probe_set(split).first))
    if not task.classes:
        raise MisconfigurationException(
            "the targets are values, and features are selected for classes: pass predict_fn=lambda module, batch: "
            "(logits, targets) with the index of a class for each sample"
        )
    return task


def _checked(rows: Tensor | None, name: str, width: int, samples: int) -> Tensor:
    """The rows of a layer on a micro-batch.

    Raises:
        ValueError: If it did not run, or returned something else than on the first micro-batch.
    """
    if rows is None or rows.shape != (samples, width):
        found = "nothing" if rows is None else f"{rows.shape[1]} features for {len(rows)} samples"
        raise ValueError(
            f"layer {name!r} has {found}, and {width} features for each of {samples} samples were expected: choose "
            "other layers="
        )
    return rows


@contextmanager
def _watched_inputs(
    module: nn.Module, names: Sequence[str], see: Callable[[str, nn.Module, Any], None]
) -> Iterator[None]:
    """Call a function with the arguments of each call of some layers of a twin."""

    def hook_of(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(layer: nn.Module, args: Any) -> None:
            with torch.no_grad():
                see(name, layer, args)

        return hook

    handles = [module.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
