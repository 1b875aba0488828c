"""What each residual block adds to the stream, relative to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import Block
from benchmarks.ours import Ready
from benchmarks.tasks import Run, Task
from benchmarks.work import Work, forward_pass
from lightning_probes import Heatmap, ResidualFlow

_NORM_AND_BRANCH = {"layernorm_before": "attention", "layernorm_after": "mlp", "ln_1": "attn", "ln_2": "mlp"}


def ours(way: str) -> Callable[[Work], Run]:
    def prepare(work: Work) -> Run:
        sizes: dict[str, Any] = {"num_samples": work.samples, "micro_batch_size": work.micro_batch_size}
        ready = Ready(ResidualFlow(**sizes), work)
        return lambda: np.asarray(cast(Heatmap, getattr(ready, way)()["residual/ratio"]).values)[:, 0]

    return prepare


def hooks(work: Work) -> Run:
    """Hooks by hand, on modules that are known to be the branches: the ratio alone, no angle and no path."""
    pairs = list(_pairs(work.net))

    @torch.no_grad()
    def run() -> Any:
        kept: dict[nn.Module, Tensor] = {}
        ratios: list[list[Tensor]] = [[] for _ in pairs]

        def on_enter(module: nn.Module, arguments: Any) -> None:
            kept[module] = arguments[0].clone()

        def on_return(module: nn.Module, arguments: Any, output: Any) -> None:
            kept[module] = (output if isinstance(output, Tensor) else output[0]).clone()

        handles = [
            handle
            for enters, returns, _ in pairs
            for handle in (enters.register_forward_pre_hook(on_enter), returns.register_forward_hook(on_return))
        ]
        for inputs, _ in work.batches:
            work.net(inputs)
            for found, (enters, returns, is_sum) in zip(ratios, pairs, strict=True):
                branch = kept[returns].flatten(1)
                stream = kept[enters].flatten(1) - (branch if is_sum else 0)
                found.append(branch.norm(dim=1) / stream.norm(dim=1))
        for handle in handles:
            handle.remove()
        return np.array([float(np.median(torch.cat(found).cpu().numpy())) for found in ratios])

    return run


def _pairs(net: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, bool]]:
    """For each block: what the stream enters, what returns the branch, and whether the former gets their sum."""
    for module in net.modules():
        if isinstance(module, Block):
            yield module.relu2, module.bn2, True
        for norm, branch in _NORM_AND_BRANCH.items():
            if hasattr(module, norm):
                yield getattr(module, norm), getattr(module, branch), False


TASK = Task(
    name="residual",
    title="What each residual block adds",
    pass_name="forward",
    plain=forward_pass,
    tools={"ours": ours("event"), "ours, view ready": ours("measure"), "hooks by hand": hooks},
    reference=lambda work: hooks(work)(),
    error=lambda work, value, exact: float(np.abs(value / exact - 1).max()),
    error_name="largest relative difference",
    models=("resnet20", "resnet18", "vit", "gpt2"),
)
