"""The ends of a path: this run, another run, and where they began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_probes.callbacks.paths.path import BatchNormMode, present, running_statistics, unknown_at_init
from lightning_probes.probing.arguments import check_state
from lightning_probes.probing.run.init_state import InitStateSource
from lightning_probes.probing.values import check_switch
from lightning_probes.probing.view import ModelView

State: TypeAlias = Mapping[str, Tensor]


def check_crossing(cross: bool, other_init: InitStateSource | None) -> None:
    """Check the arguments of lines from initialisations.

    Raises:
        ValueError: If one is out of range; the message names it.
    """
    check_switch("cross", cross)
    check_state("other_init", other_init, optional=True)
    if other_init is not None and not cross:
        raise ValueError("other_init= is for lines from initialisations: pass cross=True with it")


def read_ends(
    view: ModelView, read: Callable[[str], State | None], batch_norm: BatchNormMode, cross: bool
) -> dict[str, State]:
    """The other run and its initialisation, which is empty if it is not given.

    Args:
        view: The model that they are to fit.
        read: Gives the state that an argument names.
        batch_norm: As for `Line`.
        cross: Whether the initialisation of this run is needed.

    Raises:
        ValueError: If BatchNorm statistics are to be interpolated and one has none; names the argument.
        MisconfigurationException: If the initialisation of this run is needed and can't be known; names `init_state`.
    """
    if cross and view.init_state is None and view.run.is_single:
        raise MisconfigurationException("there is no initialisation to start the line from: pass init_state=")
    ends = {name: read(name) or {} for name in ("other", "other_init")}
    for name, state in filter(all, ends.items()):
        missing = [key for key in running_statistics(view) if key not in state]
        if batch_norm == "eval" and missing:
            raise ValueError(
                f"{name} has no {missing[0]!r}, which batch_norm='eval' interpolates: pass a state with buffers as "
                f"{name}=, or batch_norm='recalibrate'"
            )
    return ends


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
