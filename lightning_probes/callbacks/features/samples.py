"""The samples that a probe of features looks at: validation data, as far as there is any that the model runs on."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.checks import check_logits, check_loss
from lightning_probes.probing.data.drawing import DataSource
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.view import ModelView


def validation_or_training(run: Run) -> Sequence[DataSource]:
    """Validation data, and training data in case the model does not run on the former."""
    return ["val", "train"] if run.has_data("val") else ["train"]


def usable_split(view: ModelView, say: Speaker, by_default: bool) -> str:
    """The probe set to measure on, after a check that the model runs on it.

    Args:
        view: The model and the probe sets.
        say: Reports that training data takes the place of validation data.
        by_default: Whether the user left the choice of data to the probe.

    Raises:
        MisconfigurationException: If the model can't run on the samples.
    """
    check = check_loss if view.has_loss() else check_logits
    if by_default and "val" in view.data:
        try:
            check(view, "val")
        except MisconfigurationException as error:
            say.info(f"measuring on training data: {error}")
        else:
            return "val"
    split = next(iter(view.data))
    check(view, split)
    return split
