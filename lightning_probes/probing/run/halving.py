"""When memory runs out, micro-batches are halved if that does not change the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from lightning_probes.probing.data.drawing import Drawing, MicroBatch, ProbeSet
from lightning_probes.probing.data.places import Fingerprint, fingerprint
from lightning_probes.probing.objective import same_loss
from lightning_probes.probing.processes import Processes, is_out_of_memory
from lightning_probes.probing.user_code import UserCodeError
from lightning_probes.probing.view import ModelView

T = TypeVar("T")
ProbeSets = dict[str, ProbeSet]


class Samples:
    """A probe's data in one fit, which can be drawn again in smaller micro-batches.

    Args:
        draw: Draws the probe sets.
        drawing: How to draw them.
        halved_to: The largest allowed micro-batch, if memory ran out earlier in this run.
        full: Whether micro-batches must have the size of training batches, if that is known already.

    Attributes:
        sets: The probe sets by name.
        halved_to: As given; smaller after `halve`.
    """

    def __init__(
        self, draw: Callable[[Drawing], ProbeSets], drawing: Drawing, halved_to: int | None = None,
        full: bool | None = None,
    ) -> None:  # fmt: skip
        self._draw = draw
        self._drawing = replace(drawing, most=halved_to, full=bool(full))
        self._is_suited = full is not None
        self._seen: tuple[dict[str, MicroBatch], dict[str, Fingerprint]] | None = None
        self.halved_to = halved_to
        self.sets = draw(self._drawing)

    @property
    def largest(self) -> int:
        """The number of samples in the largest micro-batch."""
        return max(max(probe_set.sizes) for probe_set in self.sets.values())

    @property
    def deferred(self) -> Sequence[str]:
        """Names of the sets that are too large to be kept in memory."""
        return [name for name, probe_set in self.sets.items() if probe_set.is_deferred]

    @property
    def unlike_training(self) -> ProbeSet | None:
        """A set whose micro-batches have sizes that training may never use; None if the user chose the size."""
        if self._drawing.micro_batch_size is not None or self._is_suited:
            return None
        cut = (each for each in self.sets.values() if each.first.in_training is not None)
        return next((each for each in cut if set(each.sizes) != {each.first.in_training}), None)

    @property
    def full(self) -> bool:
        """Whether all micro-batches have the loader's batch size; see `Drawing`."""
        return self._drawing.full

    @property
    def fingerprints(self) -> dict[str, Fingerprint]:
        """Fingerprints of the sets, by which a resumed run recognises the same samples."""
        firsts = {name: probe_set.first for name, probe_set in self.sets.items()}
        if self._seen is None or any(first is not self._seen[0].get(name) for name, first in firsts.items()):
            self._seen = firsts, {name: fingerprint(first.content) for name, first in firsts.items()}
        return self._seen[1]

    def redraw(self, **changes: Any) -> None:
        """Draw the sets again with these settings changed; see `Drawing`."""
        drawing = replace(self._drawing, **changes)
        self.sets, self._drawing = self._draw(drawing), drawing

    def few(self, micro_batch_size: int) -> ProbeSets:
        """About eight samples, which are the same for every `micro_batch_size`."""
        return self._few(self._drawing, micro_batch_size)

    def few_each(self, micro_batch_size: int) -> ProbeSets:
        """About eight samples for each process, which are not split across processes."""
        alone = replace(self._drawing, rank=0, world_size=1, alike=min(1, self._drawing.alike))
        return self._few(alone, micro_batch_size)

    def _few(self, drawing: Drawing, micro_batch_size: int) -> ProbeSets:
        number = min(8, drawing.num_samples)
        if drawing.alike:  # an even number for each process
            number = drawing.alike * max(2, number // drawing.alike // 2 * 2)
        few = replace(drawing, num_samples=number, micro_batch_size=micro_batch_size, most=None, full=False)
        return self._draw(few)

    def halve(self, divisible: Callable[[ProbeSets, ProbeSets], bool]) -> bool:
        """Draw the same samples in micro-batches of half the size.

        Args:
            divisible: Decides whether this keeps the results, from a few samples in pairs and the same ones one by one.

        Returns:
            Whether micro-batches are smaller now. They are not if they already have one sample, if the data comes in
            batches that can't be split, or if smaller ones would change the results.
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
        self.redraw(most=self.halved_to)
        return self.largest < size


def attempt(compute: Callable[[], T], processes: Processes, halve: Callable[[Exception], None]) -> T:
    """Compute in all processes or in none. If memory runs out, call `halve` and compute again.

    Args:
        compute: The function to call.
        processes: The processes, which all take part.
        halve: Called with the error. It reduces the memory needed, or raises.
    """
    while True:
        try:
            with processes.together():
                return compute()
        except Exception as error:
            if not processes.out_of_memory:
                raise
            failure = error.with_traceback(None)  # the frames of a traceback keep tensors alive
        with processes.together():
            halve(failure)


def same_mean_loss(pairs: ModelView, singles: ModelView) -> bool:
    """Whether the loss of a micro-batch is the mean of the losses of its samples.

    It is not for class weights, for padded sequences averaged over tokens, and for losses that compare samples with
    each other.

    Args:
        pairs: A view of a few samples in micro-batches of two.
        singles: A view of the same samples one by one.
    """

    def same(pairs: ModelView, singles: ModelView) -> bool:
        params = pairs.scratch()
        return all(same_loss(pairs.mean_loss(params, split), singles.mean_loss(params, split)) for split in pairs.data)

    return _by_detached_passes(same, pairs, singles)


def same_logits(pairs: ModelView, singles: ModelView) -> bool:
    """Whether a sample has the same logits in a batch of two as alone, up to rounding and padding.

    It has not if the model compares samples with each other, for example with in-batch negatives.

    Args:
        pairs: A view of a few samples in micro-batches of two.
        singles: A view of the same samples one by one.
    """

    def same(pairs: ModelView, singles: ModelView) -> bool:
        (beside, targets), (alone, own) = (view.logits(view.probe_set().first) for view in (pairs, singles))
        common = tuple(slice(min(sizes)) for sizes in zip(beside.shape, alone.shape, strict=False))
        padded = targets is not None and own is not None and targets.shape[1:] != own.shape[1:]
        if beside.ndim != alone.ndim or (beside.shape[1:] != alone.shape[1:] and not padded):
            return False
        return torch.allclose(beside[common], alone[common], rtol=1e-4, atol=1e-5, equal_nan=True)

    return _by_detached_passes(same, pairs, singles)


def _by_detached_passes(same: Callable[[ModelView, ModelView], bool], pairs: ModelView, singles: ModelView) -> bool:
    if not pairs.trials:  # memory ran out before a check could decide, and passes without gradients need less of it
        try:
            return same(pairs.without_gradients, singles.without_gradients)
        except UserCodeError:  # a loss that calls autograd itself
            pass
    return same(pairs.detached, singles.detached)
