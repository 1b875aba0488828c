"""The straight line in parameter space between two states of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from lightning_probes.callbacks.paths.batch_norm import batch_norms, recalibrated_buffers
from lightning_probes.functional.paths.interpolation import distance, lerp_params
from lightning_probes.probing.layers import select_layers
from lightning_probes.probing.view import ModelView

BatchNormMode: TypeAlias = Literal["recalibrate", "eval"]


class Line:
    """Points on the line between two states of a model with the same names, from this run or another one.

    Tensors that are in neither state keep the model's current values.

    Args:
        view: The model. Both ends are converted to its device and dtypes.
        start: Parameters, and buffers to interpolate, by name, at alpha 0.
        end: The same at alpha 1.
        batch_norm: "recalibrate" re-estimates BatchNorm at each point, ends included; "eval" interpolates its running
            statistics like any other buffer.

    Example:
        `losses = [view.mean_loss(Line(view, start, end).at(alpha)) for alpha in (0.0, 0.5, 1.0)]`
    """

    def __init__(
        self, view: ModelView, start: Mapping[str, Tensor], end: Mapping[str, Tensor],
        batch_norm: BatchNormMode = "recalibrate",
    ) -> None:  # fmt: skip
        self._view, self._recalibrate = view, batch_norm == "recalibrate"
        now = _state(view)
        re_estimated = set(running_statistics(view)) if self._recalibrate else set()
        self._start, self._end = (
            {name: tensor.detach().to(now[name]) for name, tensor in state.items() if name not in re_estimated}
            for state in (start, end)
        )

    def at(self, alpha: float) -> dict[str, Tensor]:
        """Parameters, and buffers, at a point: the start exactly at 0, the end exactly at 1.

        Raises:
            ValueError: If the ends have different names or shapes.
        """
        point = lerp_params(self._start, self._end, alpha)
        return point | recalibrated_buffers(self._view, point) if self._recalibrate else point

    def distance(self) -> tuple[float, float]:
        """L2 length of the line without buffers, and this length divided by the norm of the start."""
        parameters = dict(self._view.module.named_parameters())
        ends = ({name: end[name] for name in end if name in parameters} for end in (self._start, self._end))
        return distance(*ends)


def present(view: ModelView, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The model's current parameters and BatchNorm statistics, as an end of a line.

    Args:
        view: The model.
        layers: Names or globs of the layers whose parameters move. None moves all.
    """
    now = _state(view)
    return {name: now[name] for name in (*moved(view, layers), *running_statistics(view))}


def running_statistics(view: ModelView) -> list[str]:
    """Names of the running means and variances of the BatchNorm layers that are not frozen."""
    return [f"{name}.{key}" for name in batch_norms(view) for key in ("running_mean", "running_var")]


def moved(view: ModelView, layers: Sequence[str] | None) -> list[str]:
    """Names of the parameters to move: all, or those of the layers chosen by name or glob.

    Raises:
        MisconfigurationException: If a name or glob matches no layer.
    """
    names = [name for name, _ in view.module.named_parameters()]
    if layers is None:
        return names
    chosen = set(select_layers(layers, list(dict.fromkeys(name.rpartition(".")[0] for name in names))))
    return [name for name in names if name.rpartition(".")[0] in chosen]


def unknown_at_init(view: ModelView) -> list[str]:
    """Names of the parameters that were not there, or had another shape, at the initialisation."""
    shapes = {name: tensor.shape for name, tensor in (view.init_state or {}).items()}
    return [name for name, parameter in view.module.named_parameters() if shapes.get(name) != parameter.shape]


def _state(view: ModelView) -> dict[str, Tensor]:
    state = {**dict(view.module.named_parameters()), **dict(view.module.named_buffers())}
    return {name: tensor.detach() for name, tensor in state.items()}
