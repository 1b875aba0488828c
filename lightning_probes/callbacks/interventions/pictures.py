"""The panels of the callbacks in this family, and their line plots over steps for a workspace."""

from __future__ import annotations

from lightning_probes.reporting import Lines

FISHER_PENALTY_PANELS = (
    Lines(
        "value_over_steps", "Trace of the Fisher information, from single batches",
        "The penalty keeps it low. Compare with a run at coefficient 0, which reports it too.",
        y="value", y_label="value (nats² per squared weight)", log_x=True,
        caveat="The error of one batch, which is large. FisherTrace measures the trace with a standard error.",
        detail=True,
    ),
)  # fmt: skip
FISHER_PENALTY_HEADLINES = (
    Lines(
        "share", "Norm of the penalty's gradient over that of the loss",
        "Near 0 the penalty hardly acts; far above 1 it outweighs the loss.", y="share", y_label="share (no unit)",
        log_x=True, caveat="The direction. Adam rescales both together.",
    ),
)  # fmt: skip
