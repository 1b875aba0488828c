"""How to read the results of the callbacks in this family."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_probes.reporting.readings import Reading

LAYER_CKA: Mapping[str, Reading] = {
    "to_other_mean": Reading(
        seen="This is the mean over layers of the similarity to the most similar layer of the other network.",
        usual="Two runs of one architecture are similar in their first layers and less in their last ones "
        "(Kornblith et al. 2019).",
        check="Check the level of chance, null_p95, and the heatmap: a maximum over many layers is a little too large.",
        attempt="Try other_layers= with the blocks alone if the other network has very many layers.",
    ),
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

LINEAR_PROBES: Mapping[str, Reading] = {
    "last": Reading(
        seen="This is the share of samples whose label a linear classifier reads off the last layer, or R² for values.",
        usual="It is near chance at initialisation and ends close to the accuracy of the network's own head.",
        check="Check best, because a layer before the last one may hold more.",
        attempt="Look at the curve over depth if best is more than two standard errors higher.",
    ),
    "best": Reading(
        seen="This is the share of samples whose label a linear classifier reads off the best of the layers, or R² for "
        "values.",
        usual="It rises during training; at initialisation it is mostly that of an early layer, because random layers "
        "lose information.",
        check="Check that it is above null_p95, and that the data is not the network's own training data.",
        attempt="Try the features of that layer for a new task if gap is clearly positive.",
    ),
    "best_depth": Reading(
        seen="This is the place of the best layer, from 0 for the first to 1 for the last.",
        usual="It is small at initialisation and near 1 after training, for example in convolutional networks and MLPs "
        "on MNIST-1D.",
        check="Check the standard errors of the curve over depth, because layers with equal accuracy may swap places.",
        attempt="Try a smaller learning rate or more training if it stays small.",
    ),
    "null_p95": Reading(
        seen="This is the 95th percentile of the accuracy that the same classifiers reach for permuted labels.",
        usual="It is a little above the share of a class, about 0.12 for ten classes and 2,000 samples.",
        check="Check that the accuracies that you compare are above it: lower values can be chance.",
        attempt="Try a larger num_samples= if it is far above the share of the most frequent class.",
    ),
    "layer/*": Reading(
        seen="This is the share of samples whose label a linear classifier reads off one layer, or R² for values.",
        usual="It rises with depth after training, and falls with depth at initialisation.",
        check="Check that the number of samples is at least four times the number of features of the layer.",
        attempt="Look for a bottleneck or a dead layer where it falls from one layer to the next.",
    ),
}

HEAD2TOE: Mapping[str, Reading] = {
    "gap": Reading(
        seen="This is the gain in accuracy when a linear head may use features of all layers, not the last one alone.",
        usual="For a network's own task it is near 0, or a little below; for another task it is often far above.",
        check="Check that it is at least two standard errors from 0.",
        attempt="Try lightning_probes.head2toe for the data of the new task if it is clearly positive.",
    ),
    "kept": Reading(
        seen="This is the share of the features that the best head on held-out samples uses.",
        usual="It is one of 0.01, 0.03, 0.1, 0.3 and 1, or less if fewer features are relevant.",
        check="Check the number of samples, because few samples favour few features.",
        attempt="Try a fixed fraction= if you compare several runs.",
    ),
}
ATTENTION_DISTANCE: Mapping[str, Reading] = {
    "mean": Reading(
        seen="This is the mean distance between a query and the keys that it attends to, over all heads.",
        usual="It starts near uniform, where all keys have equal weights, and falls as some heads become local.",
        check="Check the heatmap, because a mean hides local heads beside global ones.",
        attempt="Try longer training or more data if all heads of the first layers stay at uniform.",
    ),
    "min": Reading(
        seen="This is the mean distance of the most local head.",
        usual="Well below uniform after training, usually in the first layers (Raghu et al. 2021).",
        check="Check in the heatmap which layer has it.",
        attempt="Try longer training or more data if it stays at uniform.",
    ),
    "max": Reading(
        seen="This is the mean distance of the most global head.",
        usual="Near uniform or above; above it for heads that avoid the neighbourhood.",
        check="Check the entropy: a distance near uniform can come from equal weights.",
        attempt="Change nothing for this number alone.",
    ),
    "uniform": Reading(
        seen="This is the distance that a head has if all keys that it may attend to have equal weights.",
        usual="It is constant for inputs of one size, and about three quarters as large with a causal mask.",
        check="Check it when you compare runs: distances on other grids are not comparable.",
        attempt="Set grid= and patch_size= if it does not fit your inputs.",
    ),
    "entropy": Reading(
        seen="This is the entropy of the attention weights without leading tokens, in nats.",
        usual="It starts near the log of the number of tokens and falls as heads become selective.",
        check="Check for a collapse to 0: all weight on one token often goes with unstable training "
        "(Zhai et al. 2023).",
        attempt="Try a lower learning rate or normalised queries and keys if it collapses.",
    ),
    "cls_mass": Reading(
        seen="This is the weight that patches give to CLS and register tokens.",
        usual="One over the number of tokens for each of them at the start; large values are usual in trained "
        "networks, where they serve as a place to attend to nothing (Darcet et al. 2024).",
        check="Check the distances without them, which is the default.",
        attempt="Change nothing for this number alone.",
    ),
}
