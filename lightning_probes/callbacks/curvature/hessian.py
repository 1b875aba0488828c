"""Loss, gradient and Hessian of a probe set over its micro-batches and all processes; eigenvalues, traces, SAM."""

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
from lightning_probes.results import Flag

T = TypeVar("T")
Matvec: TypeAlias = Callable[[Tensor], Tensor]

_MOST_KEPT = 2**30  # bytes
_RECOVERABLE = (RuntimeError, MemoryError)  # not exceptions that stop a trial or a process


class Curvature:
    """The mean loss of a probe set and its derivatives at the current parameters.

    One forward and one backward pass over the set give loss and gradient. Their graphs are kept for the Hessian-vector
    products, up to a gigabyte and as far as memory allows. A product then costs one more backward pass through both.
    For the other micro-batches it costs all three passes, and the memory of one micro-batch. Vectors that are known
    beforehand, such as those of `trace_samples`, share one graph there too. If a process has only one micro-batch, its
    graph is always kept.

    Args:
        view: The model and the probe set.
        room: Maximum bytes of graphs to keep, in each process.
        products: Whether Hessian-vector products are needed; otherwise the loss needs no second derivative.

    Attributes:
        losses: Loss of every micro-batch on all processes, shape `(micro-batches,)`, float64.
        gradient: Gradient of the mean loss, laid out as `to_vector(view.params)`.
        eigenpairs: Results of `top_eigenpair`, by its keys.
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
        """Rise of the loss after one step of a given length along the gradient of the whole probe set (SAM)."""
        uphill = ascent_step(self._params, self.gradient, length)
        return self._over_samples(self._view.batch_losses(uphill) - self.losses)

    def matvec(self, vector: Tensor) -> Tensor:
        """The product of the Hessian of the mean loss with a vector."""
        return self.block(self._params)(vector)

    def block(self, names: Collection[str]) -> Matvec:
        """The product with the diagonal block of some parameters, for vectors laid out like these in `view.params`.

        It only uses the graph above these parameters, so it is cheaper than `matvec`.
        """
        return lambda vector: self._view.mean(lambda batch: self._product(batch, vector, names), like=vector)

    def top_eigenpair(
        self, key: str, carried: dict[str, Any], matvec: Matvec | None = None,
        params: Mapping[str, Tensor] | None = None, tolerance: float = 1e-3,
    ) -> Eigenpair:  # fmt: skip
        """Largest eigenvalue by Lanczos in at most 30 products, started from the eigenvector of the previous event.

        Args:
            key: Name of the matrix in `carried` and in `eigenpairs`.
            carried: The probe's storage that keeps an eigenvector from one event to the next.
            matvec: The product with the matrix; None for the Hessian. Build others from `matvec` and `block`.
            params: The parameters on which the matrix acts; all by default.
            tolerance: Relative residual at which to stop. The relative error of the eigenvalue is about its square.
        """
        like = self.gradient if params is None else to_vector(params)
        self.eigenpairs[key] = self._lanczos(key, carried, matvec or self.matvec, like, 30, tolerance)
        return self.eigenpairs[key]

    def not_converged(self) -> Flag:
        """Raised if a result of `top_eigenpair` has a residual above its tolerance."""
        failed = [
            f"{key} (relative residual {pair.residual:.1e})"
            for key, pair in self.eigenpairs.items()
            if not pair.converged
        ]
        return Flag(
            "not_converged", bool(failed),
            message=f"Lanczos did not converge for {', '.join(failed)}: a finite value is a lower bound, and the next "
            "measurement goes on from the vector found" if failed else "",
        )  # fmt: skip

    def known_directions(self, most: int) -> KnownDirections:
        """`matvec` that keeps the first directions for the trace."""
        return KnownDirections(self.matvec, self._sizes, most)

    def traces(self, products: int, carried: dict[str, Any], known: KnownDirections) -> dict[str, Tensor]:
        """Samples of the trace of each parameter's diagonal block, by `trace_samples` with random signs.

        Args:
            products: Number of products to use. If no direction is known yet, Lanczos finds some with the first ones.
            carried: See `top_eigenpair`.
            known: Directions that are taken exactly, from `known_directions`.
        """
        if known.directions is None:
            self._lanczos("trace", carried, known, self.gradient, known.most)
            products -= known.most
        signs = random_signs(self.gradient, products, self._view.generator(self._view.step, 1))
        return self.trace_samples(signs, known)

    def trace_samples(self, signs: Tensor, known: KnownDirections | None = None) -> dict[str, Tensor]:
        """Hutchinson's samples of the trace of each parameter's diagonal block.

        Each micro-batch processes all vectors before the next one, so that its graph is built at most once.

        Args:
            signs: The random vectors, from `random_signs`.
            known: Directions that are taken exactly, from `known_directions`.

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
        """Mean of the values of micro-batches, weighted by their samples."""
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
        # Always rounded, so that a resumed run starts from the same bits as an uninterrupted one. The start is mixed
        # with a random vector of its length, compared to which the rounding does not matter.
        carried[key] = pair.vector.to(torch.bfloat16).cpu()
        return pair

    def _about(self, batch: MicroBatch) -> Linearization:
        """A micro-batch's loss linearized at the current parameters; its graph is kept if there is room."""
        if self._room <= 0:
            return self._linearized(batch)
        try:
            with counting_saved_bytes() as saved:
                about = self._linearized(batch)
        except _RECOVERABLE:  # out of memory, or saved tensors can't be counted, for example with torch.func inside
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
            if not all(self._view.trials):  # the loss itself may differentiate with respect to any parameter
                return self._linearized(batch).restricted(names)(vector)
            params = {name: self._params[name] for name in self._params if name in names}
            return hvp(self._loss(batch), params, vector)

        return self._with_or_without_graphs(product)

    def _with_or_without_graphs(self, compute: Callable[[], T]) -> T:
        """Compute a result with the kept graphs, or without them if that fails."""
        try:
            return compute()
        except _RECOVERABLE:  # out of memory, or a tensor of the graph was changed in place
            if not self._kept:
                raise
        self._give_up()
        return compute()

    @contextmanager
    def _lending(self, batch: MicroBatch) -> Iterator[None]:
        """Keep a micro-batch's graph inside the block, even if there is no room to keep it longer."""
        if batch.index in self._kept:
            yield
            return
        self._kept[batch.index] = self._with_or_without_graphs(lambda: self._linearized(batch))
        try:
            yield
        finally:
            self._kept.pop(batch.index, None)

    def _loss(self, batch: MicroBatch) -> Loss:
        """A micro-batch's loss as a function of some parameters; the others are constant and need no graph."""
        return lambda params: self._view.loss({**self._params, **params}, batch)

    def _linearized(self, batch: MicroBatch) -> Linearization:
        return linearize(self._loss(batch), self._params)

    def _give_up(self) -> None:
        """Drop all graphs and keep none from now on."""
        self._kept.clear()
        self._room = 0
