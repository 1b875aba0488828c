"""The panels of the callbacks in this family, and their line plots over steps for a workspace."""

from __future__ import annotations

from lightning_probes.reporting import Curves, HeatmapOverSteps, Heatmaps, Lines

LAYER_CKA_PANELS = (
    Heatmaps(
        "layers",
        "Linear CKA between layers (no unit)",
        "1 = equal up to rotation and scale; below null_p95 = unrelated. High similarity is neither good nor bad.",
        caveat="What a layer computes, or how well. A few directions of large variance can determine the value, and "
        "similar layers may be used for different things.",
    ),
    HeatmapOverSteps(
        "to_init",
        "Linear CKA of each layer with itself at initialisation (no unit)",
        "1 = unchanged up to rotation and scale; below null_p95 = unrelated. A change need not be learning.",
        caveat="Whether a change is useful. A layer may drift without learning, and an unchanged layer may be useful.",
    ),
)

LAYER_CKA_OTHER_PANELS = (
    Heatmaps(
        "to_other",
        "Linear CKA with the layers of the other network (no unit)",
        "Rows are layers of this network. 1 = equal up to rotation and scale; below null_p95 = unrelated.",
        caveat="Whether similar layers are used for the same thing, or which of the networks is better.",
    ),
)

LAYER_CKA_HEADLINES = (
    Lines(
        "to_init_mean", "Linear CKA with the initialisation, mean over layers (no unit)",
        "1 = unchanged up to rotation and scale; below null_p95 = unrelated. A change need not be learning.",
        y="to_init_mean", y_label="to_init_mean (no unit)", log_x=True,
        caveat="Which layers have changed. See the heatmap with all layers.",
    ),
    Lines(
        "null_p95", "95th percentile of linear CKA when samples are shuffled (no unit)",
        "Similarity below this level can be chance.", y="null_p95", y_label="null_p95 (no unit)", log_x=True,
        caveat="A property of the model alone. It depends on num_samples and micro_batch_size.",
    ),
)  # fmt: skip

LINEAR_PROBES_PANELS = (
    Curves(
        "depth",
        "Accuracy of a linear classifier on each layer, for regression R² (no unit)",
        "Samples that it has not seen. Below the dashed line is chance. The band is ±2 standard errors.",
        band=True,
        level="null_p95",
        caveat="What the network uses. A label that can be read off a layer need not play a part in its output.",
    ),
    HeatmapOverSteps(
        "accuracy",
        "Accuracy of a linear classifier on each layer, for regression R² (no unit)",
        "Samples that it has not seen. After training it rises with depth up to the last hidden layer.",
        detail=True,
        caveat="Whether a difference between two layers is larger than its error. See the curve over depth.",
    ),
)

LINEAR_PROBES_HEADLINES = (
    Lines(
        "last", "Accuracy of a linear classifier on the last layer (no unit)",
        "Samples that it has not seen. For regression it is R².", y="last", y_label="last (no unit)", log_x=True,
        caveat="Whether another layer holds more. See best.",
    ),
    Lines(
        "best", "Accuracy of a linear classifier on the best layer (no unit)",
        "The largest of several estimates, so a little too large. For regression it is R².", y="best",
        y_label="best (no unit)", log_x=True, caveat="Which layer that is. See best_depth.",
    ),
    Lines(
        "best_depth", "Depth of the best layer (0 = first, 1 = last)",
        "It moves towards 1 as the network learns.", y="best_depth", y_label="best_depth (no unit)", log_x=True,
        caveat="How much better that layer is than others. See the curve over depth.",
    ),
    Lines(
        "null_p95", "95th percentile of the accuracy for permuted labels (no unit)",
        "Accuracy below this level can be chance.", y="null_p95", y_label="null_p95 (no unit)", log_x=True,
        caveat="A property of the network. It depends on num_samples and on the shares of the classes.",
    ),
)  # fmt: skip

HEAD2TOE_PANELS = (
    Curves(
        "relevance",
        "Share of each layer in what a linear head with a group lasso uses (no unit)",
        "Mass at the left = early layers hold what the last one lacks; for the network's own task it is at the right.",
        caveat="How much is lost without a layer. Features of several layers can stand in for each other.",
    ),
)

HEAD2TOE_HEADLINES = (
    Lines(
        "gap", "Accuracy of a head on features of all layers minus that of a head on the last (no unit)",
        "Above 0 = intermediate layers hold what the last one lacks. Samples that neither head has seen.", y="gap",
        y_label="gap (no unit)", caveat="The accuracy of the network's own head.",
    ),
    Lines(
        "kept", "Share of the features that are kept (no unit)",
        "The fraction with the best accuracy on held-out samples.", y="kept", y_label="kept (no unit)",
        caveat="Whether fewer would do nearly as well. Fractions with nearly equal accuracy may swap places.",
    ),
)  # fmt: skip

ATTENTION_DISTANCE_PANELS = (
    Heatmaps(
        "distance", "Mean attention distance of each head, sorted within its layer",
        "Dark = local, bright = global. Compare with uniform, the distance of equal weights. Neither is better.",
        caveat="Which head is which: heads are sorted at each step. Nor what a head looks for, or whether it matters.",
    ),
    Lines(
        "distance_over_steps", "Mean attention distance of the nearest, the mean and the farthest head",
        "Apart = local and global heads. The band is two standard errors of the mean over micro-batches.",
        y="mean", y_label="distance (input elements or tokens)",
        together=(("mean", "mean of all heads"), ("min", "nearest head"), ("max", "farthest head")), log_x=True,
        detail=True,
        caveat="Whether all heads sit at uniform because they have learnt nothing yet. See entropy.",
    ),
)  # fmt: skip
ATTENTION_DISTANCE_HEADLINES = (
    Lines(
        "uniform", "Attention distance if all open keys had equal weights",
        "The reference for mean, min and max. It depends on masks and grids alone.", y="uniform",
        y_label="distance (input elements or tokens)", log_x=True, caveat="Anything about the weights of the network.",
    ),
    Lines(
        "entropy", "Entropy of attention, mean over heads (nats)",
        "The log of the number of tokens = equal weights; 0 = all weight on one token.", y="entropy",
        y_label="entropy (nats)", log_x=True, caveat="Where the weights are. See the distances.",
    ),
    Lines(
        "cls_mass", "Weight that patches give to CLS and registers (share)",
        "Much weight there is often a way to attend to nothing.", y="cls_mass", y_label="cls_mass (share)", log_x=True,
        caveat="What is read there.",
    ),
)  # fmt: skip
