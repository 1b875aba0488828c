"""What it costs to find the units of a large network that can be exchanged."""

from __future__ import annotations

import statistics

import torch

from benchmarks.cells import Row
from benchmarks.timing import seconds
from lightning_probes.functional.units.finding import find_groups


def of_vit_base(rounds: int, quick: bool) -> Row:
    """Seconds beyond its passes, for a ViT-B/16 at 224 pixels. The first search imports, and is not timed.

    Args:
        rounds: How often the search and a plain pass alternate.
        quick: Take a network of two layers.
    """
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    net = ViTForImageClassification(ViTConfig(num_hidden_layers=2) if quick else ViTConfig()).eval()
    state = {name: param.detach() for name, param in net.named_parameters()}
    samples = torch.randn(2, 3, 224, 224)
    passes: list[None] = []

    def forward(params: object = state) -> torch.Tensor:
        passes.append(None)
        with torch.no_grad():
            return torch.func.functional_call(net, params, (samples,)).logits  # type: ignore[no-any-return]

    def find() -> int:
        return len(find_groups(state, forward).groups)

    groups = find()
    count = len(passes)
    plain, search = [
        list(column) for column in zip(*((seconds(forward), seconds(find)) for _ in range(rounds)), strict=True)
    ]
    beyond = [whole - count * one for one, whole in zip(plain, search, strict=True)]
    return {
        "seconds": statistics.median(beyond), "low": min(beyond), "high": max(beyond), "passes": count,
        "of_a_pass": statistics.median(plain), "groups": groups,
        "millions": sum(param.numel() for param in net.parameters()) / 1e6,
    }  # fmt: skip
