"""What one optimizer step did: its gradients, and how far the parameters moved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.flow.lengths import lengths, zeros
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.moment import Moment
from lightning_probes.probing.run.optimizers import Stepping
from lightning_probes.results import Scalar


@dataclass(frozen=True)
class Begun:
    """A step that is about to be taken; all numbers are on the device.

    Attributes:
        step: The logger's step.
        by: The optimizer.
        sizes: Entries of the gradients by parameter name.
        norms: Their L2 norms, shape `(gradients,)`.
        zeros: How many of their entries are 0, same shape.
        weights: L2 norm of all parameters of the optimizer, shape `()`.
        params: Copies of these parameters.
    """

    step: int
    by: Stepping
    sizes: Mapping[str, int]
    norms: Tensor
    zeros: Tensor
    weights: Tensor
    params: Mapping[str, Tensor]

    @classmethod
    def of(cls, moment: Moment, by: Stepping) -> Begun:
        """Read training's own gradients and parameters."""
        gradients = _own(moment.gradients.originals, by)
        norms = lengths([*gradients.values()])
        if by.scale is not None:
            norms = norms / by.scale.to(norms)
        sizes = {name: gradient.numel() for name, gradient in gradients.items()}
        weights = lengths([*_own(moment.params.originals, by).values()]).norm()
        params = {name: moment.params[name] for name in moment.params if name in by.names}
        return cls(moment.step, by, sizes, norms, zeros([*gradients.values()]), weights, params)

    def numbers(self, after: Moment) -> Tensor:
        """All numbers of the step in one tensor on the device, after it was taken."""
        now = _own(after.params.originals, self.by)
        moved = [before.sub_(now[name].detach()) for name, before in self.params.items() if name in now]  # in place
        update = lengths(moved).norm()
        clipped = self.norms.new_tensor(math.nan)
        if self.by.clips and self.by.scale is None:
            clipped = lengths([*_own(after.gradients.originals, self.by).values()]).norm()
        last = [each.to(self.norms)[None] for each in (self.weights, update, clipped)]
        return torch.cat([self.norms, self.zeros.to(self.norms), *last])


@dataclass(frozen=True)
class Finished:
    """One step after it was taken, or several together, as numbers.

    Attributes:
        norms: L2 norms of the gradients by parameter name.
        zeros: How many of their entries are 0.
        entries: How many entries they have.
        weights: L2 norm of the parameters before the step.
        update: L2 norm of their change.
        clipped: L2 norm of all gradients after clipping; None if the run does not clip.
    """

    norms: Mapping[str, float]
    zeros: float
    entries: int
    weights: float
    update: float
    clipped: float | None

    @property
    def global_norm(self) -> float:
        """L2 norm of all gradients."""
        return math.hypot(*self.norms.values())

    def scalars(self, prefix: str = "", detail: bool = False) -> Iterator[Scalar]:
        """`global_norm`, `update_ratio` and `zeros`."""
        yield Scalar(f"{prefix}global_norm", self.global_norm, detail=detail)
        if self.weights:
            yield Scalar(f"{prefix}update_ratio", self.update / self.weights, detail=True)
        yield Scalar(f"{prefix}zeros", self.zeros / self.entries, detail=True)


def taken(steps: Sequence[Begun], after: Moment) -> list[Finished]:
    """Read the numbers of all steps, waiting for the device once."""
    numbers = [step.numbers(after) for step in steps]
    read = iter(on_host(torch.cat([each.to(numbers[0]) for each in numbers])).tolist())
    found = []
    for step in steps:
        norms, zeros = ([*itertools.islice(read, len(step.sizes))] for _ in range(2))
        weights, update, clipped = itertools.islice(read, 3)
        found.append(
            Finished(
                norms=dict(zip(step.sizes, norms, strict=True)),
                zeros=sum(zeros),
                entries=sum(step.sizes.values()),
                weights=weights,
                update=update,
                clipped=clipped if step.by.clips and step.by.scale is None else None,
            )
        )
    return found


def together(steps: Sequence[Finished]) -> Finished:
    """Several steps as one, of optimizers that update different parameters."""
    clipped = [step.clipped for step in steps if step.clipped is not None]
    return Finished(
        norms={name: norm for step in steps for name, norm in step.norms.items()},
        zeros=sum(step.zeros for step in steps),
        entries=sum(step.entries for step in steps),
        weights=math.hypot(*(step.weights for step in steps)),
        update=math.hypot(*(step.update for step in steps)),
        clipped=math.hypot(*clipped) if len(clipped) == len(steps) else None,
    )


def _own(tensors: Mapping[str, Tensor], by: Stepping) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name in by.names}
