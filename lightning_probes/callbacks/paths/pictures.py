"""What the callbacks in this family draw: their panels, and their numbers over steps for a workspace."""

from __future__ import annotations

from lightning_probes.reporting import Curves, Lines

_FROM_INIT = "A smooth path does not mean good optimisation. A barrier does not mean bad optimisation."
_BESIDE = "The path that training took. This is the loss on a straight line, not beside it."
_CURVES = {
    "loss": "Training loss (unit of training)",
    "val/loss": "Validation loss (unit of training)",
    "accuracy": "Training accuracy (share)",
    "val/accuracy": "Validation accuracy (share)",
}
_LOSS_UNIT = "unit of the training loss"

INIT_INTERPOLATION_PANELS = tuple(
    Curves(key, f"{what} from initialisation to checkpoint", _FROM_INIT, start="initialisation", caveat=_BESIDE)
    for key, what in _CURVES.items()
)
INIT_INTERPOLATION_HEADLINES = (
    Lines(
        "max_rise", f"Largest rise of the loss from initialisation to checkpoint ({_LOSS_UNIT})",
        "0 = the loss never rises along the line. A barrier does not mean bad optimisation.", y="max_rise",
        y_label=f"max_rise ({_LOSS_UNIT})", log_x=True,
        caveat="Where on the line the loss rises. See the curve of each checkpoint.",
    ),
    Lines(
        "monotonic", "Whether the loss falls from initialisation to checkpoint (1 or 0)",
        "1 = no rise beyond tolerance and sampling error. A smooth path does not mean good optimisation.",
        y="monotonic", y_label="monotonic (1 or 0)", log_x=True, caveat="How large a rise is. See max_rise.",
    ),
)  # fmt: skip
