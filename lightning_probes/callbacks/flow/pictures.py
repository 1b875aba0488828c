"""The panels of the callbacks in this family, and their line plots over steps for a workspace."""

from __future__ import annotations

from lightning_probes.reporting import HeatmapOverSteps, Lines

GRADIENT_NORMS_PANELS = (
    Lines(
        "global_norm_over_steps", "Norm of training's gradient, before clipping",
        "A sudden rise by powers of ten often precedes a diverging loss. The level alone is neither good nor bad.",
        y="global_norm", y_label="global_norm (loss per unit of weight)", log_x=True, log_y=True, detail=True,
        caveat="Which layer it comes from, and the noise: each point is one step with one batch.",
    ),
    HeatmapOverSteps(
        "layers", "Norm of each layer's gradient (powers of ten)",
        "Gaps are gradients that are 0 or not finite. Compare a layer with itself over steps.",
        limits=(-4.0, 0.0),
        caveat="Whether a signal vanishes on the way back: weight gradients also grow with a layer's inputs.",
    ),
)  # fmt: skip
GRADIENT_NORMS_HEADLINES = (
    Lines(
        "update_ratio", "Length of the update over that of the weights",
        "Often near 0.001 for a well-chosen learning rate with Adam; far above it, weights are overwritten.",
        y="update_ratio", y_label="update_ratio (no unit)", log_x=True, log_y=True, reference=(1e-3, "0.001"),
        caveat="Whether the update lowers the loss. Weights without effect, such as those before normalisation, count.",
    ),
    Lines(
        "zeros", "Share of gradient entries that are exactly 0",
        "A rise over training can mean dead units.", y="zeros", y_label="zeros (share)", log_x=True,
        caveat="Why they are 0: unused embeddings and dead units look alike.",
    ),
)  # fmt: skip
