"""Going on with smaller micro-batches where memory lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from lightning_probes.probing.data import Drawing, ProbeSet
from lightning_probes.probing.objective import same_loss
from lightning_probes.probing.processes import Processes, is_out_of_memory
from lightning_probes.probing.view import ModelView

T = TypeVar("T")
ProbeSets = dict[str, ProbeSet]


class Samples:
    """A probe's data in one fit, which can be drawn again in smaller micro-batches.

    Args:
        draw: Draws the probe sets.
        drawing: How.
        halved_to: The most samples in a micro-batch, where memory has run out before.

    Attributes:
        sets: The probe sets by name.
        halved_to: As given; smaller after `halve`.
    """

    def __init__(self, draw: Callable[[Drawing], ProbeSets], drawing: Drawing, halved_to: int | None = None) -> None:
        self._draw = draw
        if halved_to is not None:
            halved_to = min(halved_to, drawing.micro_batch_size or halved_to)
            drawing = replace(drawing, micro_batch_size=halved_to)
        self._drawing = drawing
        self.halved_to = halved_to
        self.sets = draw(drawing)

    @property
    def largest(self) -> int:
        """Samples in the largest micro-batch."""
        return max(max(probe_set.sizes) for probe_set in self.sets.values())

    def few(self, micro_batch_size: int) -> ProbeSets:
        """Up to eight samples, the same for every `micro_batch_size`."""
        number = min(8, self._drawing.num_samples)
        return self._draw(replace(self._drawing, num_samples=number, micro_batch_size=micro_batch_size))

    def halve(self, divisible: Callable[[ProbeSets, ProbeSets], bool]) -> bool:
        """Draw the same samples in micro-batches of half the size.

        Args:
            divisible: Whether that leaves the results the same, judged from a few samples in pairs and one by one.

        Returns:
            Whether there are smaller micro-batches now: not if each has one sample, if the data comes in batches that
            can't be cut, or if the results would be others.
        """
        size = self.largest
        try:
            if size == 1 or not divisible(self.few(2), self.few(1)):
                return False
        except Exception as error:
            if is_out_of_memory(error):
                return False
            raise
        self.halved_to = size // 2
        self._drawing = replace(self._drawing, micro_batch_size=self.halved_to)
        self.sets = self._draw(self._drawing)
        return self.largest < size


def attempt(compute: Callable[[], T], processes: Processes, halve: Callable[[Exception], None]) -> T:
    """Compute in all processes or in none, again after `halve` where memory was lacking.

    Args:
        compute: What to compute.
        processes: All of which take part.
        halve: Makes less memory do, or raises; is given the error.
    """
    while True:
        try:
            with processes.together():
                return compute()
        except Exception as error:
            if not processes.out_of_memory:
                raise
            failure = error.with_traceback(None)  # whose frames hold tensors
        with processes.together():
            halve(failure)


def same_mean_loss(pairs: ModelView, singles: ModelView) -> bool:
    """Whether the loss of a micro-batch is the mean of the losses of its samples.

    It is not with class weights, padded sequences averaged over tokens, or samples that are compared with each other.

    Args:
        pairs: A view of a few samples in micro-batches of two.
        singles: A view of the same samples one by one.
    """
    return all(same_loss(pairs.mean_loss({}, split), singles.mean_loss({}, split)) for split in pairs.data)
