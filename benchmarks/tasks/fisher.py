"""Trace of the Fisher information with labels sampled from the model.

Timed with sampled labels. Tools that take labels are then checked on the true ones, where all of them must agree to
rounding; the others differ by chance, and are given the reference of the exact expectation where it is affordable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, backward_pass
from lightning_probes import FisherTrace, Scalar

Labels = Callable[[Tensor, Tensor], Tensor]


def sampled(logits: Tensor, targets: Tensor) -> Tensor:
    """One label a position, from the model."""
    return torch.distributions.Categorical(logits=logits.detach()).sample()


def true(logits: Tensor, targets: Tensor) -> Tensor:
    """The targets."""
    return targets


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over samples and their tokens."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def ours(way: str, labels: Literal["sampled", "exact"] = "sampled") -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        arguments: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
        true_labels = Ready(FisherTrace(labels="empirical", **arguments), work)
        work.extras["value on true labels"] = cast(Scalar, true_labels.event()["fisher/empirical_trace"]).value
        ready = Ready(FisherTrace(labels=labels, **arguments), work)

        def run() -> float:
            results = getattr(ready, way)()
            work.extras["standard error"] = results["fisher/trace"].standard_error
            return float(results["fisher/trace"].value)

        return run

    return prepare


def from_norms(norms: Callable[[Work, Labels], Tensor]) -> Callable[[Work], Run]:
    """A tool that gives squared norms of per-sample gradients for labels that it is given."""

    def prepare(work: Work) -> Run:
        work.extras["value on true labels"] = norms(work, true).double().mean().item()
        return lambda: norms(work, sampled).double().mean().item()

    return prepare


def loop(work: Work, labels: Labels) -> Tensor:
    """One backward pass a sample."""
    params = [param for param in work.net.parameters() if param.requires_grad]
    norms = []
    for inputs, targets in work.batches:
        for x, y in zip(inputs.split(1), targets.split(1), strict=True):
            logits = work.net(x)
            grads = torch.autograd.grad(log_likelihood(logits, labels(logits, y)), params, allow_unused=True)
            norms.append(torch.stack([grad.square().sum() for grad in grads if grad is not None]).sum())
    return torch.stack(norms)


def vmap(work: Work, labels: Labels) -> Tensor:
    """`torch.func.vmap` of the gradient, as PyTorch's tutorial has it."""
    params = {name: param.detach() for name, param in work.net.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return log_likelihood(torch.func.functional_call(work.net, values, (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    norms = []
    for inputs, targets in work.batches:
        with torch.no_grad():
            chosen = labels(work.net(inputs), targets)
        norms.append(sum(grad.flatten(1).square().sum(1) for grad in gradients(params, inputs, chosen).values()))
    return torch.cat(cast(list[Tensor], norms))


def backpack(work: Work) -> Run:
    import backpack as library
    from backpack.extensions import BatchL2Grad

    model = library.extend(work.net, use_converter=work.name not in ("mlp", "conv1d"))
    criterion = library.extend(nn.CrossEntropyLoss(reduction="sum"))

    def norms(work: Work, labels: Labels) -> Tensor:
        found = []
        for inputs, targets in work.batches:
            logits = model(inputs)
            loss = criterion(logits, labels(logits, targets))
            with library.backpack(BatchL2Grad()):
                loss.backward()
            found.append(torch.stack([param.batch_l2 for param in model.parameters()]).sum(0))
            model.zero_grad(set_to_none=True)
        return torch.cat(found)

    return from_norms(norms)(work)


def opacus(work: Work) -> Run:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.validators import ModuleValidator

    problems = ModuleValidator.validate(work.net.train(), strict=False)
    if problems:
        raise problems[0]
    model = GradSampleModuleFastGradientClipping(work.net, loss_reduction="sum")

    def norms(work: Work, labels: Labels) -> Tensor:
        found = []
        for inputs, targets in work.batches:
            logits = model(inputs)
            log_likelihood(logits, labels(logits, targets)).backward()
            found.append(model.get_norm_sample().square())
            model.zero_grad(set_to_none=True)
        return torch.cat(found)

    return from_norms(norms)(work)


def nngeometry(work: Work) -> Run:
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object import PMatImplicit

    samples = TensorDataset(*(torch.cat(part) for part in zip(*work.batches, strict=True)))
    loader = DataLoader(samples, batch_size=work.micro_batch_size)
    return lambda: float(FIM_MonteCarlo(work.net, loader, PMatImplicit).trace())


def reference(work: Work) -> float:
    """Mean squared gradient norm on the true labels, sample by sample."""
    return loop(work, true).double().mean().item()


def error(work: Work, value: float, exact: float) -> float:
    if "value on true labels" not in work.extras:
        return float("nan")  # draws its own labels: nothing to be compared to rounding
    return float(abs(work.extras["value on true labels"] - exact) / abs(exact))


TASK = Task(
    name="fisher",
    title="Fisher trace, sampled labels",
    pass_name="forward and backward",
    plain=backward_pass,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, evaluate": ours("evaluate"),
        "ours, exact labels": ours("event", "exact"),
        "vmap": from_norms(vmap),
        "loop": from_norms(loop),
        "backpack": backpack,
        "opacus": opacus,
        "nngeometry": nngeometry,
    },
    reference=reference,
    error=error,
    error_name="relative error on true labels",
)
