"""Norm of the gradient of each sample's loss with respect to the outputs of the layers, over depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import cross_entropy
from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, backward_pass
from lightning_probes import Curve, GradientFlow

_BLOCKS = {
    "resnet20": "blocks", "resnet18": "blocks", "vit": "model.vit.layers", "gpt2": "model.transformer.h",
}  # fmt: skip


def layers_of(work: Work) -> list[str]:
    """The blocks of a network; in a chain, the layers with weights but for the last."""
    blocks = _BLOCKS.get(work.name)
    if blocks is not None:
        return [f"{blocks}.{name}" for name, _ in work.net.get_submodule(blocks).named_children()]
    return [name for name, module in work.net.named_children() if isinstance(module, (nn.Linear, nn.Conv1d))][:-1]


def ours(way: str, auto: bool = False) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
        layers: Any = "auto" if auto else [f"net.{name}" for name in layers_of(work)]
        ready = Ready(GradientFlow(layers=layers, **sizes), work)

        def run() -> Any:
            norms = np.asarray(cast(Curve, getattr(ready, way)()["gradient_flow/norm"]).y)
            work.extras["places"] = len(norms)
            return None if auto else norms

        return run

    return prepare


def captum(work: Work) -> Run:
    """Gradients of the loss of each sample, as if it were an attribution."""
    from captum.attr import LayerGradientXActivation

    def losses(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = work.net(inputs)
        each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        return each.reshape(len(inputs), -1).mean(1)

    modules = [work.net.get_submodule(name) for name in layers_of(work)]
    gradients = LayerGradientXActivation(losses, modules, multiply_by_inputs=False)

    def run() -> Any:
        found = [gradients.attribute(inputs, additional_forward_args=targets) for inputs, targets in work.batches]
        return _medians([[part.detach() for part in parts] for parts in found])

    return run


def hooks(work: Work) -> Run:
    """Hooks by hand that keep the outputs, and one call of autograd."""
    modules = [work.net.get_submodule(name) for name in layers_of(work)]

    def run() -> Any:
        kept: list[Tensor] = []
        handles = [module.register_forward_hook(lambda module, args, output: kept.append(output)) for module in modules]
        found = []
        for inputs, targets in work.batches:
            kept.clear()
            loss = cross_entropy(work.net(inputs), targets) * len(inputs)
            found.append(torch.autograd.grad(loss, kept))
        for handle in handles:
            handle.remove()
        return _medians(found)

    return run


def _medians(gradients: Any) -> Any:
    """Over samples, of the norm of each one's gradient; from (micro-batches, layers) of gradients."""
    norms = [torch.cat([part.flatten(1).norm(dim=1) for part in parts]) for parts in zip(*gradients, strict=True)]
    return np.array([float(np.median(each.cpu().numpy())) for each in norms])


TASK = Task(
    name="gradient_flow",
    title="Gradients of activations over depth",
    pass_name="forward and backward",
    plain=backward_pass,
    tools={
        "ours": ours("event"),
        "ours, view ready": ours("measure"),
        "ours, auto layers": ours("event", auto=True),
        "captum": captum,
        "hooks by hand": hooks,
    },
    reference=lambda work: hooks(work)(),
    error=lambda work, value, exact: float("nan") if value is None else float(np.abs(value / exact - 1).max()),
    error_name="largest relative difference",
    models=("mlp", "conv1d", "resnet20", "resnet18", "vit", "gpt2"),
)
