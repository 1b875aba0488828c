"""The panels of the callbacks in this family, and their line plots over steps for a workspace."""

from __future__ import annotations

from lightning_probes.reporting import Curves, HeatmapOverSteps, Lines

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

_RATIO = "0 = the block adds nothing, 1 = as much as the stream has. Medians over samples."
_USE = "Whether what a block adds is useful: a large branch may be undone by the next."

RESIDUAL_FLOW_PANELS = (
    HeatmapOverSteps("ratio", "Norm of each branch over the norm of its skip connection", _RATIO, caveat=_USE),
    HeatmapOverSteps(
        "cls/ratio",
        "Norm of each branch over the norm of its skip connection, first token",
        _RATIO,
        caveat=_USE,
        detail=True,
    ),
)
RESIDUAL_FLOW_HEADLINES = (
    Lines(
        "ratio_median", "Norm of the branch over the norm of the skip connection, median over blocks (no unit)",
        "Near 0 the blocks hardly act; above 1 they replace the stream.", y="ratio_median",
        y_label="ratio_median (no unit)", log_x=True, caveat="Single blocks: see the heatmap.",
    ),
    Lines(
        "path_length", "Length of the way through the longest stage over the distance of its ends (no unit)",
        "1 = straight. Blocks that undo one another make it long.", y="path_length", y_label="path_length (no unit)",
        log_x=True, caveat="Other stages, and where the way bends.",
    ),
)  # fmt: skip

_DECADES = "Below -3 vanishing, above +1.5 exploding, by default. 0 = the same norm at both ends."
GRADIENT_FLOW_PANELS = (
    Curves(
        "norm", "Norm of the loss's gradient with respect to activations over depth",
        "Level = gradients reach all layers alike. Falling to the left = they vanish on the way back.", log_y=True,
        caveat="Gradients of weights. They also depend on the activations, and may be level while these fall.",
    ),
)  # fmt: skip
GRADIENT_FLOW_HEADLINES = (
    Lines(
        "decades", "Decades of gradient norm from the last to the first layer",
        _DECADES, y="decades", y_label="decades (log10)", log_x=True, reference=(0.0, "level"),
        caveat="Where along the depth the norm changes: see the curve.",
    ),
    Lines(
        "slope", "Slope of the gradient norm over depth (decades per layer)",
        "Positive = gradients shrink on the way back. The same slope is harmless in a shallow network, fatal in a deep "
        "one.", y="slope", y_label="slope (decades per layer)", log_x=True, caveat="Single layers: see the curve.",
    ),
)  # fmt: skip
