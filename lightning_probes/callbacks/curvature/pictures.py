"""What the callbacks in this family draw: their panels, and their numbers over steps for a workspace."""

from __future__ import annotations

from dataclasses import replace

from lightning_probes.reporting import Extreme, Lines

_UNIT = "nats² per squared weight"
_TRACE = f"trace ({_UNIT})"
_NOTE = (
    "The learning rate drives both the peak of the Fisher trace and the loss, so that a correlation between the two "
    "does not say that one causes the other: compare trials of one learning rate, and traces at equal loss rather than "
    "at equal step. The peak at equal loss is the largest trace until the probe's own loss first fell to `at_loss`, "
    "half of its first value unless that was set; trials that did not get there have none."
)

FISHER_TRACE_PANELS: tuple[Lines, ...] = (
    Lines(
        "trace_over_steps", "Trace of the Fisher information (± 2 s.e.)",
        "A high early peak goes with worse generalisation; not a cause of it, and not a generalisation score.",
        y="trace", y_label=_TRACE, log_x=True,
        caveat="A cause: the learning rate moves peak and generalisation alike. Nor do heights compare across "
        "architectures or losses; the band is the error of sampling data and labels, not the spread over seeds.",
    ),
    Lines(
        "trace_over_loss", "Trace of the Fisher information over the loss (± 2 s.e.)",
        "Compare runs at equal loss, not at equal step.", y="trace", x="loss", x_label="loss (nats per target)",
        y_label=_TRACE,
        caveat="Time: the line runs from the first measurement to the last, mostly from right to left; hovering "
        "tells the step.",
    ),
)  # fmt: skip
EMPIRICAL_PANELS = tuple(
    replace(
        panel, key=f"empirical_{panel.key}", title=panel.title.replace("Fisher", "empirical Fisher"),
        y="empirical_trace",
    )
    for panel in FISHER_TRACE_PANELS
)  # fmt: skip
SHARPNESS_PANELS = (
    Lines(
        "stability_ratio_over_steps", "Sharpness over the optimizer's stability threshold",
        "In the long run full-batch training hovers at 1, minibatch SGD stays below 1 if its batches are small. "
        "Not a generalisation score.",
        y="stability_ratio", y_label="λ_max over threshold (no unit)", reference=(1.0, "edge of stability"),
        log_x=True,
        caveat="Whether training diverges: above 1 the loss may rise for some steps and fall over many.",
    ),
    Lines(
        "lambda_max_over_steps", "Largest Hessian eigenvalue (± 2 s.e. over micro-batches)",
        "Follows the learning rate and the scale of the weights. Not a generalisation score.", y="lambda_max",
        y_label="λ_max (loss per squared weight)", log_x=True,
        caveat="The flatness of the minimum as a whole: this is one direction of very many, and rescaling the "
        "weights changes it without changing the function.",
    ),
)  # fmt: skip
SHARPNESS_HEADLINES = (
    Lines(
        "sam", "Rise of the loss on one step of length rho along the gradient (unit of the training loss)",
        "Follows rho and the scale of the weights, so compare runs of one rho. Not a generalisation score.",
        y="sam", y_label="sam (unit of the training loss)", log_x=True,
        caveat="How the loss rises in other directions.",
    ),
)  # fmt: skip


def peak_at_equal_loss(quantity: str, at_loss: float | None) -> Extreme:
    """The largest trace until the loss fell to `at_loss`, by which the runs of a sweep are compared."""
    reached = "half of the first loss" if at_loss is None else f"a loss of {at_loss:g}"
    title, key = f"Fisher peak until {reached}", f"{quantity}_max_at_loss"
    return Extreme(key, title, "peak at equal loss", _UNIT, _NOTE, "which drives both")
