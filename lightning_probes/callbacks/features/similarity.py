"""Linear CKA of layers over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.functional.features.layer_hsic import BatchHSIC, Form, Layers, all_on_host
from lightning_probes.metrics import CKA, MinibatchCKA
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.layer_features import LayerFeatures
from lightning_probes.probing.run.init_state import StateDict
from lightning_probes.probing.view import ModelView
from lightning_probes.results import FloatArray

_FEWEST = 4  # samples in a micro-batch, for the estimate to be unbiased


def check_sizes(sizes: Sequence[int], asked: int) -> None:
    """Check that there are enough samples in each micro-batch.

    Args:
        sizes: Samples in each micro-batch.
        asked: The number of requested samples.

    Raises:
        MisconfigurationException: If there are too few; the message names `data` or `micro_batch_size`.
    """
    if sum(sizes) < _FEWEST <= asked:
        raise MisconfigurationException(
            f"the data has {sum(sizes)} samples, but unbiased CKA needs at least {_FEWEST}: leave LayerCKA out, or "
            "pass other data="
        )
    if min(sizes) < _FEWEST:
        raise MisconfigurationException(
            f"unbiased CKA needs at least {_FEWEST} samples in every micro-batch, but one has {min(sizes)} of the "
            f"{sum(sizes)} in total: pass a larger micro_batch_size= (and num_samples=), or, if batches can't be "
            "split, data= with larger batches"
        )


def look_at(
    view: ModelView, layers: LayerFeatures, batch: MicroBatch, split: str, params: StateDict | None = None
) -> Layers:
    """The layers on a micro-batch, in a form to compare: Gram matrices, or features if the layers are narrow.

    Args:
        view: The model.
        layers: The layers.
        batch: One of this process's micro-batches.
        split: The probe set that it belongs to.
        params: Parameters and buffers to run the model with; by default the current ones.
    """
    widths = layers.widths
    form = Form.cheapest([*widths.values()], view.probe_set(split).first.size, view.device)
    found = layers.look(view, batch, form.keep, params)
    return form.gather([found.get(name) for name in widths], batch.size, view.device)


def off_diagonal_mean(values: FloatArray) -> float:
    """The mean over pairs of different layers.

    Example:
        >>> off_diagonal_mean(np.array([[1.0, 0.5], [0.3, 1.0]]))
        0.4
    """
    return float(values[~np.eye(len(values), dtype=bool)].mean())


def cka_over(view: ModelView, batches: Sequence[BatchHSIC], shape: tuple[int, ...], num_permutations: int = 0) -> CKA:
    """CKA over micro-batches and processes.

    Args:
        view: The model.
        batches: The HSIC of each of this process's micro-batches.
        shape: Shape of the result.
        num_permutations: Number of shuffles of samples in each of `batches`.
    """
    cka = MinibatchCKA(shape, num_permutations, **view.synced)
    for batch in all_on_host(batches):
        cka.update(batch)
    return cka.compute()
