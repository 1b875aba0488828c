"""The ends of a path: this run, another run, and where they began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from lightning_probes.callbacks.paths.path import BatchNormMode, present, running_statistics, unknown_at_init
from lightning_probes.probing.view import ModelView

State: TypeAlias = Mapping[str, Tensor]


def check_end(view: ModelView, state: State, batch_norm: BatchNormMode, argument: str) -> None:
    """A state of another run has what its end of a line needs besides parameters.

    Raises:
        ValueError: If BatchNorm statistics are to be interpolated and it has none; the message names the argument and
            `batch_norm`.
    """
    missing = [name for name in running_statistics(view) if name not in state]
    if batch_norm == "eval" and missing:
        raise ValueError(
            f"{argument} has no {missing[0]!r}, which batch_norm='eval' interpolates: pass a state with buffers as "
            f"{argument}=, or batch_norm='recalibrate'"
        )


def end_of(view: ModelView, state: State) -> dict[str, Tensor]:
    """A state of another run as an end of a line from `present`: the parameters and BatchNorm statistics.

    Statistics that it lacks are those of the model as it is now; they are re-estimated.
    """
    now = present(view)
    return {name: state.get(name, tensor) for name, tensor in now.items()}


def start_of(view: ModelView) -> dict[str, Tensor]:
    """The initialisation of this run as an end; empty if it is not known, or the model has other parameters now."""
    if view.init_state is None or unknown_at_init(view):
        return {}
    return end_of(view, view.init_state)
