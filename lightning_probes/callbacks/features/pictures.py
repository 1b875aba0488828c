"""The panels of the callbacks in this family, and their line plots over steps for a workspace."""

from __future__ import annotations

from lightning_probes.reporting import HeatmapOverSteps, Heatmaps, Lines

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
