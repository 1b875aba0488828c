"""The panels of the callbacks in this family, and their line plots over steps for a workspace."""

from __future__ import annotations

from dataclasses import replace

from lightning_probes.reporting import Extreme, Lines

_UNIT = "nats² per squared weight"
_TRACE = f"trace ({_UNIT})"
_NOTE = (
    "The learning rate drives both the peak of the Fisher trace and the loss, so a correlation between the two does "
    "not mean that one causes the other. Compare trials with the same learning rate, and traces at equal loss instead "
    "of equal step. The peak at equal loss is the largest trace until the probe's own loss first fell to `at_loss`, by "
    "default half of its first value. Trials that did not reach this loss have no such value."
)

FISHER_TRACE_PANELS: tuple[Lines, ...] = (
    Lines(
        "trace_over_steps", "Trace of the Fisher information (± 2 s.e.)",
        "A high early peak correlates with worse generalisation. It need not be the cause, and is not a generalisation "
        "score.",
        y="trace", y_label=_TRACE, log_x=True,
        caveat="A cause, because the learning rate changes both the peak and the generalisation. Heights can't be "
        "compared across architectures or losses. The band is the error of sampling data and labels, not the spread "
        "over seeds.",
    ),
    Lines(
        "trace_over_loss", "Trace of the Fisher information over the loss (± 2 s.e.)",
        "Compare runs at equal loss, not at equal step.", y="trace", x="loss", x_label="loss (nats per target)",
        y_label=_TRACE,
        caveat="Training time. The line runs from the first measurement to the last, mostly from right to left; "
        "hovering shows the step.",
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
        "In the long run full-batch training stays near 1, and SGD with small batches below 1. "
        "Not a generalisation score.",
        y="stability_ratio", y_label="λ_max over threshold (no unit)", reference=(1.0, "edge of stability"),
        log_x=True,
        caveat="Whether training diverges. Above 1 the loss may rise for some steps and still fall over many.",
    ),
    Lines(
        "lambda_max_over_steps", "Largest Hessian eigenvalue (± 2 s.e. over micro-batches)",
        "Depends on the learning rate and the scale of the weights. Not a generalisation score.", y="lambda_max",
        y_label="λ_max (loss per squared weight)", log_x=True,
        caveat="The flatness of the minimum as a whole. This is one direction of very many, and rescaling the "
        "weights changes the value without changing the function.",
    ),
)  # fmt: skip
SHARPNESS_HEADLINES = (
    Lines(
        "sam", "Rise of the loss after one step of length rho along the gradient (unit of the training loss)",
        "Depends on rho and the scale of the weights, so compare runs with equal rho. Not a generalisation score.",
        y="sam", y_label="sam (unit of the training loss)", log_x=True,
        caveat="The rise of the loss in other directions.",
    ),
)  # fmt: skip
TRAINING_REGIME_PANELS = (
    Lines(
        "relative_over_steps", "Loss, curvature and stability ratio relative to their references",
        "Above 1 at the start, then a peak of the loss and a landing below 1 in a flatter place: a catapult. "
        "Not a generalisation score.",
        y="stability_ratio", y_label="no unit", reference=(1.0, "edge of stability; first loss and curvature"),
        together=(
            ("stability_ratio", "λ_max over threshold"),
            ("loss_ratio", "loss over the first one"),
            ("lambda_ratio", "λ_max over the first one"),
        ),
        log_x=True, log_y=True,
        caveat="A regime of the theory, if training is not full-batch gradient descent on the squared loss.",
    ),
)  # fmt: skip
TRAINING_REGIME_HEADLINES = (
    Lines(
        "regime", "Regime: 0 lazy, 1 catapult, 2 edge of stability, 3 divergent, -1 unsettled",
        "A rule of thumb outside of full-batch gradient descent on the squared loss.", y="regime",
        y_label="regime (0 lazy, 1 catapult, 2 edge, 3 divergent, -1 unsettled)", log_x=True,
        caveat="How close the rule was to another label.",
    ),
    Lines(
        "peak_loss_ratio", "Largest loss so far over the first one", "Above 1 only if the loss rose after the start.",
        y="peak_loss_ratio", y_label="peak_loss_ratio (no unit)", log_x=True,
        caveat="A peak between two measurements. It lasts for a few steps, so keep the schedule dense at the start.",
    ),
)  # fmt: skip


def peak_at_equal_loss(quantity: str, at_loss: float | None) -> Extreme:
    """The largest trace until the loss fell to `at_loss`, by which the runs of a sweep are compared."""
    reached = "half of the first loss" if at_loss is None else f"a loss of {at_loss:g}"
    title, key = f"Fisher peak until {reached}", f"{quantity}_max_at_loss"
    return Extreme(key, title, "peak at equal loss", _UNIT, _NOTE, "which drives both")
