"""Operations on entries at the same position: arithmetic, activations, and the scales and shifts of layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_probes.functional.units.evidence import Evidence
from lightning_probes.functional.units.labels import Labels, depends
from lightning_probes.functional.units.rules.call import Call, Rule


def meet(evidence: Evidence, operands: Sequence[Labels], shape: Sequence[int]) -> Labels:
    """Labels of a tensor whose entries are computed from entries at the same, broadcast position.

    Units that meet are one unit. Units that meet positions of a bare axis stay at their positions.
    """
    operands = [operand.padded(len(shape)) for operand in operands if not operand.uniform]
    if not operands:
        return Labels(tuple(shape), uniform=True)
    kept: list[Tensor] = []
    for axis in range(len(shape)):
        factors = [factor for operand in operands for factor in operand.along(axis)]
        if not factors:
            continue
        evidence.unite(factors)
        first = factors[0]
        if any(operand.bare(axis) for operand in operands):
            evidence.tell_apart(first, [axis])
        if not any(first is factor for factor in kept):
            kept.append(first)
    return Labels(tuple(shape), tuple(kept))


def pointwise(call: Call) -> list[Labels]:
    """The same function of all entries at a position."""
    return [meet(call.evidence, call.operands, output.shape) for output in call.outputs]


def gated(call: Call) -> list[Labels]:
    """`glu`: the first half of an axis times the sigmoid of the second half."""
    axis, evidence = call.axis, call.evidence
    kept = call.input.without(axis)
    for factor in call.input.along(axis):
        halves = factor.chunk(2, axis)
        for half in halves:
            evidence.set_apart(half)
        evidence.unite(halves)
        kept.append(halves[0])
    return [call.labelled(*kept)]


def softmax(call: Call) -> list[Labels]:
    """Entries over a sum along one axis."""
    normalise(call.evidence, call.input, [call.axis])
    return [call.labelled(*call.input.factors)]


def normalise(evidence: Evidence, labels: Labels, axes: Sequence[int]) -> None:
    """Entries are divided by, or shifted by, a symmetric function of the entries along some axes."""
    for factor in labels.along(*axes):
        others = [axis for axis in range(factor.ndim) if axis not in axes and depends(factor, axis)]
        if others:
            evidence.tell_apart(factor, others)


def layer_norm(call: Call) -> list[Labels]:
    """Layer and RMS norm: statistics over the last axes, one scale and one shift for each of their positions."""
    x = call.input
    ndim = len(x.shape)
    normalise(call.evidence, x, range(ndim - len(call["normalized_shape"]), ndim))
    affine = [labels for labels in (call.labels("weight"), call.labels("bias")) if labels is not None]
    return [meet(call.evidence, [x, *affine], x.shape)]


def batch_norm(call: Call) -> list[Labels]:
    """Statistics, scale and shift of each channel, axis 1; the running statistics belong to the channels, too."""
    x = call.input
    normalise(call.evidence, x, [axis for axis in range(len(x.shape)) if axis != 1])
    names = ("weight", "bias", "running_mean", "running_var")
    return [_with_channels(call, names)]


def group_norm(call: Call) -> list[Labels]:
    """Statistics of groups of channels, axis 1; one scale and one shift for each channel."""
    x = call.input
    channels = x.shape[1]
    for factor in x.along(1):
        everywhere = factor.reshape(factor.shape[0], call["group"], channels // call["group"], *factor.shape[2:])
        call.evidence.tell_apart(everywhere, [1])
    return [_with_channels(call, ("weight", "bias"))]


def weight_norm(call: Call) -> list[Labels]:
    """Slices along an axis, over their lengths, times a scale each."""
    direction, kept = call.tensor("v"), call["dim"]
    normalise(call.evidence, direction, [axis for axis in range(len(direction.shape)) if axis != kept])
    return [meet(call.evidence, [direction, call.tensor("g")], direction.shape)]


def _with_channels(call: Call, names: Sequence[str]) -> Labels:
    """The input meets vectors with an entry for each channel, axis 1."""
    x = call.input
    ones = (1,) * (len(x.shape) - 2)
    vectors = [labels for name in names if (labels := call.labels(name)) is not None]
    spread = [
        Labels((*vector.shape, *ones), tuple(f.reshape(*f.shape, *ones) for f in vector.factors), vector.uniform)
        for vector in vectors
    ]
    return meet(call.evidence, [x, *spread], x.shape)


RULES: dict[str, Rule] = {
    # Operations with PyTorch's tag "pointwise" need no entry.
    **dict.fromkeys(("copy", "fill", "zero", "celu", "rrelu_with_noise_functional", "_prelu_kernel"), pointwise),
    **dict.fromkeys(("bitwise_and", "fmin", "hardswish", "isin", "log_sigmoid_forward", "relu6"), pointwise),
    # Of these, only some forms have the tag in some versions of PyTorch.
    **dict.fromkeys(("elu", "hardsigmoid", "hardtanh", "ldexp", "leaky_relu", "mish", "selu"), pointwise),
    "glu": gated,
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), softmax),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), layer_norm),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), batch_norm
    ),
    **dict.fromkeys(("cudnn_batch_norm", "miopen_batch_norm"), batch_norm),
    **dict.fromkeys(("_batch_norm_with_update", "_batch_norm_no_update"), batch_norm),
    "native_group_norm": group_norm,
    "_weight_norm_interface": weight_norm,
}
