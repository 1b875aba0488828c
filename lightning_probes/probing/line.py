"""The straight line in parameter space from the initialisation to now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from lightning_probes.functional.interpolation import distance, lerp_params
from lightning_probes.probing.batch_norm import batch_norms, recalibrated_buffers
from lightning_probes.probing.layers import select
from lightning_probes.probing.view import ModelView

BatchNormMode: TypeAlias = Literal["recalibrate", "eval"]


@dataclass(frozen=True)
class Line:
    """Points between the initialisation and the present parameters.

    Args:
        view: The model, with its initial state.
        layers: Names or globs of the layers that move; the others stay where they are now. None moves all.
        batch_norm: "recalibrate" re-estimates BatchNorm at each point; "eval" moves its running statistics along.
    """

    view: ModelView
    layers: Sequence[str] | None
    batch_norm: BatchNormMode

    def moved(self) -> list[str]:
        """Names of the parameters that move.

        Raises:
            MisconfigurationException: If a name or glob in `layers` matches no layer.
        """
        names = list(self._now())
        if self.layers is None:
            return names
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        chosen = set(select(self.layers, layers))
        return [name for name in names if name.rpartition(".")[0] in chosen]

    def at(self, alpha: float) -> dict[str, Tensor]:
        """Parameters, and BatchNorm buffers, at a point: the initialisation exactly at 0, the present exactly at 1."""
        start, end = self._start(), self._now()
        if self.batch_norm == "recalibrate":
            point = lerp_params(start, end, alpha)
            return point | recalibrated_buffers(self.view, point)
        statistics = [f"{name}.{key}" for name in batch_norms(self.view) for key in ("running_mean", "running_var")]
        end |= {name: self.view.module.get_buffer(name) for name in statistics}
        start |= {name: self._initial(name, end[name]) for name in statistics}
        return lerp_params(start, end, alpha)

    def distance(self) -> tuple[float, float]:
        """L2 length of the line, without buffers, and that length over the norm of the initial parameters."""
        start, end, moved = self._start(), self._now(), self.moved()
        return distance({name: start[name] for name in moved}, {name: end[name] for name in moved})

    def _now(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.view.module.named_parameters()}

    def _start(self) -> dict[str, Tensor]:
        moved = set(self.moved())
        return {name: self._initial(name, now) if name in moved else now for name, now in self._now().items()}

    def _initial(self, name: str, now: Tensor) -> Tensor:
        assert self.view.init_state is not None
        return self.view.init_state[name].to(now)
