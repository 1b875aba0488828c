"""Parameters that are real numbers, of which vectors and inner products are made."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.view import ModelView


def check_real(view: ModelView, what: str, instead: str) -> None:
    """No parameter is complex, before training time is spent.

    Args:
        view: The model.
        what: What needs that, with its verb.
        instead: The argument with which complex ones work.

    Raises:
        MisconfigurationException: If one is complex; names it.
    """
    for name, parameter in view.module.named_parameters():
        if parameter.is_complex():
            raise MisconfigurationException(
                f"parameter {name!r} is complex, and {what} real parameters only: keep it as a real one and call "
                f"torch.view_as_complex in forward, or pass {instead}"
            )
