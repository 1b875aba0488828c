"""The straight line in parameter space from the initialisation to now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from lightning_probes.callbacks.paths.batch_norm import batch_norms, recalibrated_buffers
from lightning_probes.functional.paths.interpolation import distance, lerp_params
from lightning_probes.probing.layers import select_layers
from lightning_probes.probing.view import ModelView

BatchNormMode: TypeAlias = Literal["recalibrate", "eval"]


class Line:
    """Points between the initialisation and the present parameters.

    Args:
        view: The model, with its initial state.
        layers: Names or globs of the layers that move; the others stay where they are now. None moves all.
        batch_norm: "recalibrate" re-estimates BatchNorm at each point; "eval" moves its running statistics along.

    Attributes:
        moved: Names of the parameters that move.

    Raises:
        MisconfigurationException: If a name or glob in `layers` matches no layer.
    """

    def __init__(self, view: ModelView, layers: Sequence[str] | None, batch_norm: BatchNormMode) -> None:
        self._view, self._recalibrate = view, batch_norm == "recalibrate"
        self._end = {name: parameter.detach() for name, parameter in view.module.named_parameters()}
        self.moved = moved(view, layers)
        statistics = [f"{name}.{key}" for name in batch_norms(view) for key in ("running_mean", "running_var")]
        along = [] if self._recalibrate else statistics
        self._end |= {name: view.module.get_buffer(name) for name in along}
        self._start = self._end | view.initial((*self.moved, *along))

    def at(self, alpha: float) -> dict[str, Tensor]:
        """Parameters, and BatchNorm buffers, at a point: the initialisation exactly at 0, the present exactly at 1."""
        point = lerp_params(self._start, self._end, alpha)
        return point | recalibrated_buffers(self._view, point) if self._recalibrate else point

    def distance(self) -> tuple[float, float]:
        """L2 length of the line, without buffers, and that length over the norm of the initial parameters."""
        return distance(*({name: end[name] for name in self.moved} for end in (self._start, self._end)))


def moved(view: ModelView, layers: Sequence[str] | None) -> list[str]:
    """Names of the parameters that move: all, or those of the layers chosen by name or glob.

    Raises:
        MisconfigurationException: If a name or glob matches no layer.
    """
    names = [name for name, _ in view.module.named_parameters()]
    if layers is None:
        return names
    chosen = set(select_layers(layers, list(dict.fromkeys(name.rpartition(".")[0] for name in names))))
    return [name for name in names if name.rpartition(".")[0] in chosen]
