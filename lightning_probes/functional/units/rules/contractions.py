"""Sums over an axis of products: matrix products, convolutions, embeddings."""

from __future__ import annotations

from torch import Tensor

from lightning_probes.functional.units.evidence import Evidence
from lightning_probes.functional.units.labels import Labels, axes_of, compact, depends
from lightning_probes.functional.units.rules.call import Call, Rule
from lightning_probes.functional.units.rules.meetings import meet

READER = "reader"
PRODUCER = "producer"


def contract(evidence: Evidence, left: Labels, right: Labels, equation: str) -> list[Tensor]:
    """Factors of a sum of products.

    - Units along an axis that is summed are those they meet in the other operand. They are no units of the result. If
      the other axis is bare, each stays at its position.
    - An axis of the result that both operands have is a batch axis: units along it meet as in `meet`.
    - Units along any other axis of the result are its units, too.
    - Any other axis of one operand is mixed, as pixels in a convolution: its units stay at their positions.

    A factor that depends on a summed axis and on others is fixed along the others.

    Args:
        evidence: Where to note what meets.
        left: One operand.
        right: The other one.
        equation: Letters of the axes, as in `torch.einsum`.
    """
    inputs, output = equation.split("->")
    names = inputs.split(",")
    letters = "".join(dict.fromkeys(names[0] + names[1]))
    operands = [left, right]
    factors = [
        [_spread(factor, name, letters) for factor in labels.factors]
        for labels, name in zip(operands, names, strict=True)
    ]

    def holds_still(side: int, letter: str) -> bool:
        labels = operands[side]
        return not labels.uniform and labels.shape[names[side].index(letter)] > 1

    _mark(evidence, operands, names, output, letters, factors)
    for letter in letters:
        axis = letters.index(letter)
        met = [[factor for factor in side if depends(factor, axis)] for side in factors]
        everything = met[0] + met[1]
        shared = all(letter in name for name in names)
        both = bool(met[0] and met[1])
        if letter in output or not everything:
            continue
        if both:
            evidence.unite(everything)
        elif not shared or holds_still(0 if met[1] else 1, letter):
            for factor in everything:
                evidence.tell_apart(factor, [axis])
        for factor in everything:
            evidence.tell_apart(factor, [other for other in axes_of(factor) if other != axis])
        factors = [[factor for factor in side if not depends(factor, axis)] for side in factors]
    for letter in (letter for letter in output if all(letter in name for name in names)):
        axis = letters.index(letter)
        met = [[factor for factor in side if depends(factor, axis)] for side in factors]
        everything = met[0] + met[1]
        both = bool(met[0] and met[1])
        if both and any(axes_of(factor) == [axis] for factor in everything):
            evidence.unite(everything)
        elif both or (everything and holds_still(0 if met[1] else 1, letter)):
            for factor in everything:
                evidence.tell_apart(factor, [axis])
    return [_gathered(factor, output, letters) for factor in factors[0] + factors[1]]


def _spread(factor: Tensor, names: str, letters: str) -> Tensor:
    """A factor with an axis for each of the letters, in their order."""
    ordered = factor.permute(sorted(range(len(names)), key=lambda axis: letters.index(names[axis])))
    sizes = iter(ordered.shape)
    return ordered.reshape([next(sizes) if letter in names else 1 for letter in letters])


def _gathered(factor: Tensor, output: str, letters: str) -> Tensor:
    """A factor with the axes of the output, in their order; it depends on no others."""
    rest = [letter for letter in letters if letter not in output]
    ordered = factor.permute([letters.index(letter) for letter in (*output, *rest)])
    return ordered.reshape(ordered.shape[: len(output)])


def _mark(
    evidence: Evidence,
    operands: list[Labels],
    names: list[str],
    output: str,
    letters: str,
    factors: list[list[Tensor]],
) -> None:
    """Note along which axes a weight reads units of data, and along which it computes new ones."""
    for side in (0, 1):
        if operands[side].is_state and not operands[1 - side].is_state:
            for mark, inside in ((READER, False), (PRODUCER, True)):
                axes = [
                    letters.index(letter)
                    for letter in names[side]
                    if (letter in output) == inside and (letter in names[1 - side]) != inside
                ]
                evidence.mark(mark, [factor for factor in factors[side] if axes and depends(factor, *axes)])


def product(left: str, right: str, equation: str) -> Rule:
    """A matrix product of two arguments; a third one, `self`, is added where it is none of them."""

    def rule(call: Call) -> list[Labels]:
        result = call.labelled(*contract(call.evidence, call.tensor(left), call.tensor(right), equation))
        added = None if "self" in (left, right) else call.labels("self")
        return [result if added is None else meet(call.evidence, [result, added], result.shape)]

    return rule


def convolution(call: Call) -> list[Labels]:
    """Convolutions of any number of dimensions, transposed ones and those of groups of channels."""
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.labels("bias")
    groups, ndim = call["groups"], len(x.shape) - 2
    pixels, taps = "uvw"[:ndim], "xyz"[:ndim]
    inputs = f"ngc{pixels},gco{taps}" if call["transposed"] else f"ngc{pixels},goc{taps}"
    factors = contract(call.evidence, _split(x, 1, groups), _split(weight, 0, groups), f"{inputs}->ngo")
    shape = call.outputs[0].shape
    merged = []
    for factor in factors:
        wide = factor.expand(-1, groups, shape[1] // groups) if depends(factor, 1, 2) else factor
        merged.append(wide.reshape(factor.shape[0], -1, *[1] * ndim))
    result = call.labelled(*compact(merged))
    if bias is None:
        return [result]
    ones = (1,) * ndim
    added = Labels((*bias.shape, *ones), tuple(f.reshape(*f.shape, *ones) for f in bias.factors), bias.uniform)
    return [meet(call.evidence, [result, added], shape)]


def _split(labels: Labels, axis: int, count: int) -> Labels:
    """Labels with an axis split in two, the first one of this size."""

    def split(sizes: tuple[int, ...]) -> tuple[int, ...]:
        size = sizes[axis]
        inner = (count, size // count) if size > 1 else (1, 1)
        return (*sizes[:axis], *inner, *sizes[axis + 1 :])

    factors = tuple(factor.reshape(split(tuple(factor.shape))) for factor in labels.factors)
    return Labels(split(labels.shape), factors, labels.uniform, labels.is_state)


def embedding(call: Call) -> list[Labels]:
    """Rows of a weight: which ones depends on data, so they stay where they are."""
    weight, indices = call.tensor("weight"), call["indices"]
    for factor in weight.along(0):
        call.evidence.fix(factor)
    features = weight.without(0)
    if weight.is_state:
        call.evidence.mark(PRODUCER, features)
    return [call.labelled(*(factor.reshape(*[1] * indices.ndim, -1) for factor in features))]


RULES: dict[str, Rule] = {
    "mm": product("self", "mat2", "ik,kj->ij"),
    "addmm": product("mat1", "mat2", "ik,kj->ij"),
    "bmm": product("self", "mat2", "bik,bkj->bij"),
    "baddbmm": product("batch1", "batch2", "bik,bkj->bij"),
    "mv": product("self", "vec", "ik,k->i"),
    "addmv": product("mat", "vec", "ik,k->i"),
    "dot": product("self", "tensor", "k,k->"),
    **dict.fromkeys(("convolution", "convolution_overrideable"), convolution),
    "embedding": embedding,
}
