"""Operations along some axes: sums and other symmetric functions, pooling, orders."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_probes.functional.units.labels import Labels, axes_of, depends
from lightning_probes.functional.units.rules.call import Call, NoRuleError, Rule


def reduced(call: Call) -> list[Labels]:
    """A symmetric function of the entries along some axes, such as their sum or maximum."""
    x, output = call.input, call.outputs[0]
    axes = _axes(call["dim"], len(x.shape))
    keep = output.ndim == len(x.shape)
    if any(tuple(result.shape) != tuple(_reduced(x.shape, axes, keep)) for result in call.outputs):
        raise NoRuleError
    kept = []
    for factor in x.factors:
        inside = depends(factor, *axes)
        if inside:
            call.evidence.tell_apart(factor, [axis for axis in axes_of(factor) if axis not in axes])
        else:
            kept.append(factor.reshape(_reduced(factor.shape, axes, keep)))
    return [Labels(tuple(result.shape), tuple(kept), x.uniform) for result in call.outputs]


def extremes(call: Call) -> list[Labels]:
    """`max` and `min` along an axis, and their positions, to which the units are fixed."""
    axes = _axes(call["dim"], len(call.input.shape))
    if len(call.outputs) > 1 or call.operation._schema.name.startswith("aten::arg"):
        for factor in call.input.along(*axes):
            call.evidence.fix(factor)
    return reduced(call)


def _axes(dim: int | Sequence[int] | None, ndim: int) -> list[int]:
    """Axes of a reduction, counted from the front: all where none is given."""
    given = [dim] if isinstance(dim, int) else list(dim or range(ndim))
    return [axis % ndim for axis in given] if ndim else []


def _reduced(sizes: Sequence[int], axes: Sequence[int], keep: bool) -> list[int]:
    return [1 if axis in axes else size for axis, size in enumerate(sizes) if keep or axis not in axes]


def ordered(call: Call) -> list[Labels]:
    """Functions of the order of entries along one axis, such as running sums: its units stay at their positions."""
    return [_fixed_along(call, [call.axis], output) for output in call.outputs]


def pooled(ndim: int) -> Rule:
    """Functions of neighbours along the last axes, whose units stay at their positions."""

    def rule(call: Call) -> list[Labels]:
        total = len(call.input.shape)
        return [_fixed_along(call, range(total - ndim, total), output) for output in call.outputs]

    return rule


def _fixed_along(call: Call, axes: Sequence[int], output: Tensor) -> Labels:
    """Labels of an output that has other entries along some axes of the input."""
    for factor in call.input.along(*axes):
        call.evidence.fix(factor)
    if output.ndim != len(call.input.shape):
        raise NoRuleError
    return Labels(tuple(output.shape), tuple(call.input.without(*axes)))


SUMS = ("sum", "nansum", "mean", "prod", "amax", "amin", "var", "std", "var_mean", "std_mean", "logsumexp")
NORMS = ("linalg_vector_norm", "norm", "any", "all", "count_nonzero", "aminmax")
POOLS = ("max_pool{}d", "max_pool{}d_with_indices", "avg_pool{}d", "_adaptive_avg_pool{}d", "adaptive_max_pool{}d")
PADS = ("reflection_pad{}d", "replication_pad{}d", "upsample_nearest{}d", "_upsample_nearest_exact{}d")
SMOOTH = {"upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_trilinear3d": 3}

RULES: dict[str, Rule] = {
    **dict.fromkeys((*SUMS, *NORMS), reduced),
    **dict.fromkeys(("max", "min", "argmax", "argmin"), extremes),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "topk", "argsort"), ordered),
    **{name.format(ndim): pooled(ndim) for name in (*POOLS, *PADS) for ndim in (1, 2, 3)},
    **{name: pooled(ndim) for name, ndim in SMOOTH.items()},
}
