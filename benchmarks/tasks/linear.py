"""Accuracy of a linear classifier on the features of each layer, each time on the fifth that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.tasks.cka import layers_of
from benchmarks.work import Work, forward_pass
from lightning_probes import Heatmap, LinearProbes
from lightning_probes.functional.features.cka import permutations
from lightning_probes.functional.features.pooling import Pooling
from lightning_probes.functional.features.read_out import FOLDS, folds_of
from lightning_probes.functional.features.ridge import LAMBDAS

_LAYERS = 8
_FEATURES = 256

Predict = Callable[[Any, Any, Any], Any]
"""Predicts labels of samples, from the features and labels of others."""


def ours(way: str) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        ready = made(work, layers_of(work, _LAYERS))

        def run() -> Any:
            accuracy = cast(Heatmap, getattr(ready, way)()["linear/accuracy"])
            work.extras["layers"] = len(accuracy.values)
            return np.asarray(accuracy.values)[:, 0]

        return run

    return prepare


def made(work: Work, layers: list[str]) -> Ready:
    """The probe on some of the network's layers."""
    sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
    names = [f"net.{name}" for name in layers]
    return Ready(LinearProbes(layers=names, data="train", max_features=_FEATURES, **sizes), work)


def scikit_learn(predict: Predict) -> Callable[[Work], Run]:
    """The same features, collected by hooks, in the same folds; without a null."""

    def prepare(work: Work) -> Run:
        layers = layers_of(work, _LAYERS)
        (order,) = permutations(work.samples, 1, made(work, layers).view().generator(0), torch.device("cpu"))
        folds = folds_of(order).numpy()
        labels = torch.cat([targets for _, targets in work.batches]).cpu().numpy()

        def run() -> Any:
            hits = []
            for features in _features(work, layers):
                right = np.zeros(len(labels), bool)
                for fold in range(FOLDS):
                    own, others = folds == fold, folds != fold
                    right[own] = predict(features[others], labels[others], features[own]) == labels[own]
                hits.append(right.mean())
            return np.array(hits)

        return run

    return prepare


def ridge_and_lda(features: Any, labels: Any, unseen: Any) -> Any:
    """Ridge regression of the labels with its penalty by leave-one-out, and a discriminant analysis of its values."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import RidgeCV

    squares = np.square(features - features.mean(0)).sum()
    targets = (labels[:, None] == np.unique(labels)).astype(float)
    ridge = RidgeCV(alphas=[penalty * squares for penalty in LAMBDAS]).fit(features, targets)
    analysis = LinearDiscriminantAnalysis(solver="lsqr").fit(ridge.predict(features), labels)
    return analysis.predict(ridge.predict(unseen))


def logistic(features: Any, labels: Any, unseen: Any) -> Any:
    """At one penalty: to choose it as well would take it so many times."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, labels).predict(unseen)


@torch.no_grad()
def _features(work: Work, layers: list[str]) -> list[Any]:
    """Of each layer, in float64: averages over as many cells as give at most 256 numbers."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    poolings: dict[str, Pooling] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: object, arguments: object, output: Tensor) -> None:
            axis = 2 if work.name == "vit" and output.ndim == 3 else 1
            pooling = poolings.setdefault(name, Pooling.fit(output, axis, "auto", _FEATURES))
            found[name].append(pooling(output).cpu().double())

        return hook

    handles = [work.net.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    for inputs, _ in work.batches:
        work.net(inputs)
    for handle in handles:
        handle.remove()
    return [torch.cat(rows).numpy() for rows in found.values()]


TASK = Task(
    name="linear",
    title=f"Linear classifiers on {_LAYERS} layers, five folds",
    pass_name="forward",
    plain=forward_pass,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "scikit-learn, ridge and LDA": scikit_learn(ridge_and_lda),
        "scikit-learn, logistic": scikit_learn(logistic),
    },
    reference=lambda work: scikit_learn(ridge_and_lda)(work)(),
    error=lambda work, value, exact: float(np.abs(value - exact).max()),
    error_name="largest difference of accuracy from scikit-learn's ridge and LDA",
    models=("mlp", "conv1d", "resnet20", "vit"),  # one label a sample
)
