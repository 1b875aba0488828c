"""Norms and inner products of the skip connections and branches of a pass, for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_probes.functional.flow.rows import rows
from lightning_probes.functional.plain import plain
from lightning_probes.functional.tracing.additions import Addition, sample_dim


class Products(NamedTuple):
    """Of one addition, for each sample; those that need an earlier addition of the stage are 0 without one.

    Attributes:
        skip: Norm of the skip operand z.
        branch: Norm of the branch operand f.
        along: Inner product of f and z.
        turn: Inner product of f and the branch operand before it in the stage.
        step: Norm of the difference of z and the skip operand before it in the stage.
        span: Norm of the difference of z and the first skip operand of the stage.
    """

    skip: Tensor
    branch: Tensor
    along: Tensor
    turn: Tensor
    step: Tensor
    span: Tensor


@dataclass(frozen=True)
class _Latest:
    skip: Tensor
    branch: Tensor
    first: Tensor


class StreamProducts:
    """Sees the residual additions of a pass, see `follow_additions`.

    Args:
        samples: Number of samples in the pass.
        cls: Whether to look at the first token of (samples, tokens, dim) operands by itself.

    Attributes:
        found: By the name of the block: for all tokens, or with `cls` for all but the first and for the first one.
    """

    def __init__(self, samples: int, cls: bool = False) -> None:
        self._samples, self._cls = samples, cls
        self._latest: dict[int, list[_Latest]] = {}  # of each stage, by the position of its latest addition
        self.found: dict[str, list[Products]] = {}

    def operands(self, position: int, addition: Addition, skip: Tensor, branch: Tensor) -> None:
        """Compute the products of an addition."""
        before: list[_Latest] = [] if addition.before is None else self._latest.pop(addition.before)
        parts = list(zip(self._parts(skip), self._parts(branch), strict=True))
        self.found[addition.name] = products = []
        self._latest[position] = latest = []
        for part, (z, f) in enumerate(parts):
            earlier = before[part] if before else None
            products.append(_products(z, f, earlier))
            # Copies, because a later operation may overwrite the operands.
            z = z.clone()
            latest.append(_Latest(z, f.clone(), z if earlier is None else earlier.first))

    def result(self, position: int, addition: Addition, result: Tensor) -> None:
        """Nothing."""

    def _parts(self, operand: Tensor) -> list[Tensor]:
        operand, dim = plain(operand), sample_dim(operand, self._samples)
        assert dim is not None
        if not self._cls:
            return [rows(operand, dim)]
        first = operand.movedim(dim, 0)
        if operand.ndim != 3:
            return [rows(first, 0), rows(first[:, :0], 0)]
        return [rows(first[:, 1:], 0), rows(first[:, 0], 0)]


def _products(z: Tensor, f: Tensor, earlier: _Latest | None) -> Products:
    skip, branch = _norms(z), _norms(f)
    zero = torch.zeros_like(skip)
    if earlier is None:
        return Products(skip, branch, _inner(f, z), zero, zero, zero)
    step = _norms(z - earlier.skip)
    span = step if earlier.first is earlier.skip else _norms(z - earlier.first)
    return Products(skip, branch, _inner(f, z), _inner(f, earlier.branch), step, span)


def _norms(matrix: Tensor) -> Tensor:
    """In the precision of the matrix: a stream has no numbers whose squares leave its range, and it is fast."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return norms


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Not as a matrix product, which may be in low precision on a GPU."""
    return (first * second).sum(1)
