"""Passes of an event by counting them, as many as the probe declares or fewer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from benchmarks.cells import Row
from benchmarks.models import cross_entropy
from benchmarks.ours import Ready, counting_products
from benchmarks.work import Lit, load
from lightning_probes import Head2Toe, InitInterpolation, LinearProbes, Probe, TrainingRegime


def regime(**sizes: Any) -> Probe:
    return TrainingRegime(loss_fn=lambda module, batch: cross_entropy(module(batch[0]), batch[1]), **sizes)


def linearized(**sizes: Any) -> Probe:
    return InitInterpolation(linearized=True, **sizes)


def head2toe(**sizes: Any) -> Probe:
    return Head2Toe(data="train", **sizes)


def linear(**sizes: Any) -> Probe:
    return LinearProbes(data="train", **sizes)


def of_event(make: Callable[..., Probe], model: str, directory: Path, scale: float) -> Row:
    """Forward passes over the samples in a first event, those in forward mode among them, and Hessian-vector products.

    Products that share a forward pass count one by one, and the pass as well.
    """
    work = load(model, directory, many_passes=True, scale=scale)
    probe = make(num_samples=work.samples, micro_batch_size=work.micro_batch_size)
    ready = Ready(probe, work, with_init=probe.needs_init_state)
    calls: list[bool] = []
    products: list[int] = []
    with _counting_forwards(calls), counting_products(products):
        ready.event()
    batches = len(work.batches)
    return {"forward": len(calls) / batches, "in_forward_mode": sum(calls) / batches, "products": sum(products)}


@contextmanager
def _counting_forwards(calls: list[bool]) -> Iterator[None]:
    """Append whether the logits have a tangent at each call of a network while the block runs."""
    inner = Lit.forward

    def counted(self: Lit, x: Tensor) -> Tensor:
        logits = inner(self, x)
        unpacked = forward_ad.unpack_dual(logits)  # type: ignore[no-untyped-call]
        calls.append(unpacked.tangent is not None)
        return logits

    Lit.forward = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Lit.forward = inner  # type: ignore[method-assign]
