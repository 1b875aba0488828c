"""Loss, gradient and Hessian of a probe set, over its micro-batches and all processes, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from lightning_probes.functional.curvature.hutchinson import (
    KnownDirections,
    ProjectedSigns,
    hutchinson_samples,
    random_signs,
)
from lightning_probes.functional.curvature.hvp import Linearization, Loss, gradient, hvp, linearize
from lightning_probes.functional.curvature.lanczos import Eigenpair, lanczos_top_eigenpair
from lightning_probes.functional.curvature.sam import ascent_step
from lightning_probes.functional.curvature.saved_bytes import counting_saved_bytes
from lightning_probes.functional.inner_product import inner_product
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.functional.wide import on_host, widest
from lightning_probes.metrics.mean_estimate import Estimate, estimate_mean
from lightning_probes.probing.data.drawing import MicroBatch
from lightning_probes.probing.view import ModelView

T = TypeVar("T")
Matvec: TypeAlias = Callable[[Tensor], Tensor]

_MOST_KEPT = 2**30  # bytes
_RECOVERABLE = (RuntimeError, MemoryError)  # not what stops a trial or a process


class Curvature:
    """The mean loss of a probe set about the present parameters.

    One forward and one backward pass over the set give loss and gradient. Their graphs are kept for the Hessian-vector
    products, as many as a gigabyte holds and there is memory for, so that a product costs one more backward pass
    through both; for the other micro-batches it costs all three passes, and the memory of one micro-batch. Vectors that
    are known beforehand, as those of `trace_samples`, share one graph there too. The graph of a process's only
    micro-batch is kept whatever its size.

    Args:
        view: The model and the probe set.
        room: Bytes of graphs to keep at most, in each process.
        products: Whether Hessian-vector products are wanted; without them the loss need have no second derivative.

    Attributes:
        losses: Loss of every micro-batch on whichever process, shape `(micro-batches,)`, float64.
        gradient: Gradient of the mean loss, laid out as `to_vector(view.params)`.
        eigenpairs: What `top_eigenpair` has found, by its keys.
    """

    def __init__(self, view: ModelView, room: float = _MOST_KEPT, products: bool = True) -> None:
        self._view, self._params = view, view.params
        self._sizes = [parameter.numel() for parameter in self._params.values()]
        self._kept: dict[int, Linearization] = {}
        self._room = math.inf if len(view.batches()) == 1 else room
        self.eigenpairs: dict[str, Eigenpair] = {}
        losses: dict[int, Tensor] = {}

        def slope(batch: MicroBatch) -> Tensor:
            if not products:
                value, slope = gradient(self._loss(batch), self._params)
                losses[batch.index] = value
                return slope
            about = self._about(batch)
            losses[batch.index] = about.value
            return about.gradient

        self.gradient = view.mean(slope, like=to_vector(self._params))
        self.losses = view.of_all(losses)

    @cached_property
    def loss(self) -> float:
        """The mean loss."""
        return self._over_samples(self.losses).mean

    def rise_along_gradient(self, length: float) -> Estimate:
        """Rise of the loss on one step of a length along the gradient, one step for the whole probe set (SAM)."""
        uphill = ascent_step(self._params, self.gradient, length)
        return self._over_samples(self._view.batch_losses(uphill) - self.losses)

    def matvec(self, vector: Tensor) -> Tensor:
        """The product of the Hessian of the mean loss with a vector."""
        return self.block(self._params)(vector)

    def block(self, names: Collection[str]) -> Matvec:
        """The product with the diagonal block of some parameters, for vectors laid out as these are in `view.params`.

        It walks the layers above theirs alone, and so costs a part of `matvec`.
        """
        return lambda vector: self._view.mean(lambda batch: self._product(batch, vector, names), like=vector)

    def top_eigenpair(
        self, key: str, carried: dict[str, Any], matvec: Matvec | None = None,
        params: Mapping[str, Tensor] | None = None, tolerance: float = 1e-3,
    ) -> Eigenpair:  # fmt: skip
        """Largest eigenvalue by Lanczos in at most 30 products, started from the eigenvector of the event before.

        Args:
            key: Names the matrix, in `carried` and in `eigenpairs`.
            carried: A probe's own, where an eigenvector passes from one event to the next.
            matvec: The product with the matrix. None takes the Hessian; others are made of `matvec` and `block`.
            params: The parameters that the matrix acts on; by default all.
            tolerance: Relative residual at which to stop. The eigenvalue is wrong by about its square.
        """
        like = self.gradient if params is None else to_vector(params)
        self.eigenpairs[key] = self._lanczos(key, carried, matvec or self.matvec, like, 30, tolerance)
        return self.eigenpairs[key]

    def known_directions(self, most: int) -> KnownDirections:
        """`matvec`, remembering the first directions for the trace."""
        return KnownDirections(self.matvec, self._sizes, most)

    def traces(self, products: int, carried: dict[str, Any], known: KnownDirections) -> dict[str, Tensor]:
        """Samples of the trace of each parameter's diagonal block, as of `trace_samples`, by random signs.

        Args:
            products: How many to spend. Where no direction is known yet, Lanczos finds some with the first of them.
            carried: See `top_eigenpair`.
            known: Directions that need not be estimated, of `known_directions`.
        """
        if known.directions is None:
            self._lanczos("trace", carried, known, self.gradient, known.most)
            products -= known.most
        signs = random_signs(self.gradient, products, self._view.generator(self._view.step, 1))
        return self.trace_samples(signs, known)

    def trace_samples(self, signs: Tensor, known: KnownDirections | None = None) -> dict[str, Tensor]:
        """Hutchinson's samples of the trace of each parameter's diagonal block.

        One micro-batch after the other takes all vectors, so that each has its graph made at most once for them.

        Args:
            signs: The random vectors, of `random_signs`.
            known: Directions that need not be estimated, of `known_directions`.

        Returns:
            By parameter, each of shape `(vectors,)`, float64, on the CPU. The mean over vectors estimates the trace of
            the block.
        """
        vectors = ProjectedSigns(signs, None if known is None else known.directions, self.gradient.dtype)
        like = torch.zeros(len(signs), len(self._sizes), dtype=widest(signs.device), device=signs.device)

        def samples(batch: MicroBatch) -> Tensor:
            with self._lending(batch):
                matvec = partial(self._product, batch, names=self._params)
                return hutchinson_samples(matvec, vectors, self._sizes)

        found = on_host(self._view.mean(samples, like) + (0 if known is None else known.trace))
        return dict(zip(self._params, found.unbind(1), strict=True))

    def along(self, direction: Tensor) -> Tensor:
        """Curvature v^T H_b v of every micro-batch's own loss along a vector, shape `(micro-batches,)`, float64."""
        return self._view.per_batch(
            lambda batch: inner_product(direction, self._product(batch, direction, self._params))
        )

    def spread_along(self, direction: Tensor) -> float | None:
        """Standard error of the curvature along a vector, over micro-batches."""
        return self._over_samples(self.along(direction)).standard_error

    def _over_samples(self, values: Tensor) -> Estimate:
        """Mean, over samples, of values of micro-batches."""
        return estimate_mean(values, self._view.probe_set().sizes)

    def _lanczos(
        self, key: str, carried: dict[str, Any], matvec: Matvec, like: Tensor, max_matvecs: int,
        tolerance: float = 1e-3,
    ) -> Eigenpair:  # fmt: skip
        start = carried.get(key)
        if start is None or start.shape != like.shape:
            generator = self._view.generator(0)
            start = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        pair = lanczos_top_eigenpair(matvec, start.to(like), max_matvecs=max_matvecs, tolerance=tolerance)
        # Rounded in a run without a break too, so that one with a break starts from the same bits. The start is mixed
        # with a random vector of its length, beside which low digits do not matter.
        carried[key] = pair.vector.to(torch.bfloat16).cpu()
        return pair

    def _about(self, batch: MicroBatch) -> Linearization:
        """A micro-batch's loss about the present parameters; its graph is kept if there is room."""
        if self._room <= 0:
            return self._linearized(batch)
        try:
            with counting_saved_bytes() as saved:
                about = self._linearized(batch)
        except _RECOVERABLE:  # lack of memory, or a loss that can't be looked into, as with torch.func inside
            about = None
        if about is None:
            self._give_up()
            return self._linearized(batch)
        size = sum(saved.values()) + sum(gradient.nbytes for gradient in about.gradients)
        if size <= self._room:
            self._room -= size
            self._kept[batch.index] = about
        return about

    def _product(self, batch: MicroBatch, vector: Tensor, names: Collection[str]) -> Tensor:
        def product() -> Tensor:
            if batch.index in self._kept:
                return self._kept[batch.index].restricted(names)(vector)
            if not all(self._view.trials):  # such a loss may differentiate by any of the parameters
                return self._linearized(batch).restricted(names)(vector)
            params = {name: self._params[name] for name in self._params if name in names}
            return hvp(self._loss(batch), params, vector)

        return self._with_or_without_graphs(product)

    def _with_or_without_graphs(self, compute: Callable[[], T]) -> T:
        """A result; without kept graphs where it can't be had with them."""
        try:
            return compute()
        except _RECOVERABLE:  # lack of memory, or a tensor that somebody has written to since
            if not self._kept:
                raise
        self._give_up()
        return compute()

    @contextmanager
    def _lending(self, batch: MicroBatch) -> Iterator[None]:
        """Have a micro-batch's graph while the block runs, whether or not there is room to keep it."""
        if batch.index in self._kept:
            yield
            return
        self._kept[batch.index] = self._with_or_without_graphs(lambda: self._linearized(batch))
        try:
            yield
        finally:
            self._kept.pop(batch.index, None)

    def _loss(self, batch: MicroBatch) -> Loss:
        """A micro-batch's loss as a function of some parameters, the others constant, which spares their graph."""
        return lambda params: self._view.loss({**self._params, **params}, batch)

    def _linearized(self, batch: MicroBatch) -> Linearization:
        return linearize(self._loss(batch), self._params)

    def _give_up(self) -> None:
        """Keep no graphs; what raises without them too is raised then."""
        self._kept.clear()
        self._room = 0
