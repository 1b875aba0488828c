"""The samples for a probe of features: validation data, or training data if that is not possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.checks import check_logits, check_loss
from lightning_probes.probing.data.drawing import DataSource
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView


def validation_or_training(run: Run) -> Sequence[DataSource]:
    """Validation data if there is any, and training data in case the model can't run on validation data."""
    return ["val", "train"] if run.has_data("val") else ["train"]


def usable_split(
    view: ModelView, say: Speaker, by_default: bool, check: Callable[[ModelView, str], None] | None = None
) -> str:
    """The probe set to measure on, after a check that the model runs on it.

    Args:
        view: The model and the probe sets.
        say: Reports that training data is used instead of validation data.
        by_default: Whether the user left the choice of data to the probe.
        check: Checks that the probe can use a set; by default, that the loss can be computed, or else the logits.

    Raises:
        MisconfigurationException: If the model can't run on the samples.
    """
    check = check or (check_loss if view.has_loss() else check_logits)
    if by_default and "val" in view.data:
        fault = next(filter(None, view.processes.everyone(_fault(view, check))), "")
        if not fault:
            return "val"
        say.info(f"measuring on training data: {fault}")
    split = next(iter(view.data))
    check(view, split)
    return split


def _fault(view: ModelView, check: Callable[[ModelView, str], None]) -> str:
    """Why the model can't run on this process's validation data; empty if it can."""
    try:
        check(view, "val")
    except MisconfigurationException as error:
        return str(error)
    return ""
