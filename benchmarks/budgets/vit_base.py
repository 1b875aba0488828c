"""What an event costs on a network of the usual size, where a pass takes seconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cells import Row
from benchmarks.models import CLASSES, Logits
from benchmarks.ours import Ready
from benchmarks.timing import alternate
from benchmarks.work import Lit, Work, forward_pass
from lightning_probes import Probe

_SAMPLES = 8


def compare(make: Callable[..., Probe], rounds: int, quick: bool, limit: float) -> Row:
    """An event of a probe over a forward pass of a ViT-B/16 at 224 pixels; `quick` takes two layers of it."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2} if quick else {}
    module = Lit(Logits(ViTForImageClassification(ViTConfig(num_labels=CLASSES, **layers)), "pixel_values"))
    images = torch.randn(_SAMPLES, 3, 224, 224), torch.randint(CLASSES, (_SAMPLES,))
    work = Work("vit", module, {}, _SAMPLES, _SAMPLES)
    work.loader = DataLoader(TensorDataset(*images), batch_size=_SAMPLES)
    ready, plain = Ready(make(data="train", num_samples=_SAMPLES, micro_batch_size=_SAMPLES), work), forward_pass(work)
    plain()
    ready.event()
    timing = alternate(plain, ready.event, rounds, limit=limit)
    low, high = timing.quartiles
    return {
        "ratio": timing.ratio, "low": low, "high": high, "samples": _SAMPLES,
        "of_a_pass": statistics.median(timing.plain),
        "millions": sum(param.numel() for param in module.parameters()) / 1e6,
    }  # fmt: skip
