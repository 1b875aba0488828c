"""How to read the results of the callbacks in this family."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting.readings import Reading

LAYER_CKA: Mapping[str, Reading] = {
    "to_init_mean": Reading(
        seen="This is the similarity of the layers to themselves at initialisation, averaged over layers.",
        usual="It falls from 1 as features form, first and most in the last layers; on MNIST-1D a healthy network of "
        "six layers ended at 0.38, and one with two frozen layers at 0.60.",
        check="Check the heatmap of each layer, because a mean hides a layer that stays at 1.",
        attempt="Look at requires_grad and at the gradients of a layer that stays at 1.",
    ),
    "null_p95": Reading(
        seen="This is the 95th percentile of the similarity of layers when the samples of one are shuffled.",
        usual="It is near 0, about 0.01 with 512 samples, and larger with few samples or small micro-batches.",
        check="Check that the similarities that you compare are above it: lower values can be chance.",
        attempt="Try a larger num_samples= or micro_batch_size= if it is not small.",
    ),
    "layer/*": Reading(
        seen="This is the similarity of one layer to itself at initialisation.",
        usual="It is lower in later layers; a wide layer may change little and still be useful.",
        check="Check that a low value is above null_p95, and that a layer at 1 is not frozen.",
        attempt="Look at requires_grad and at the gradients of a layer that stays at 1.",
    ),
}
