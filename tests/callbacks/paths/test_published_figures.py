"""Figures of small networks on the 8 x 8 digits that other code measured over five seeds; bands three times as wide."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_probes import DropoutStability, ModeConnectivity, Scalar
from lightning_probes.callbacks.paths.aligning import Align
from lightning_probes.results import Result

TRAINED_ON = 1300


@cache
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    samples = torch.as_tensor(found.data, dtype=torch.float32)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:TRAINED_ON]
    samples, targets = samples[order], torch.as_tensor(found.target)[order]
    return (samples - samples.mean()) / samples.std(), targets


@cache
def trained(seed: int, width: int, hidden: int, steps: int) -> nn.Sequential:
    """An MLP after SGD of momentum 0.9 on batches of 128, with a cosine schedule from a learning rate of 0.1."""
    torch.manual_seed(seed)
    sizes = [64, *[width] * hidden]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(width, 10))
    samples, targets = digits()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step % 10 == 0:
            epoch = torch.randperm(len(samples)).split(128)
        batch = epoch[step % 10]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(samples[batch]), targets[batch]).backward()
        optimizer.step()
        schedule.step()
    return net


def loss_fn(module: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def value(found: dict[str, Result], key: str) -> float:
    result = found[key]
    assert isinstance(result, Scalar)
    return result.value


@pytest.mark.parametrize("align", ["weights", "activations"])
def test_barrier_of_two_runs_is_of_the_published_size_and_falls_where_they_are_matched(align: Align) -> None:
    run, other = (trained(seed, width=128, hidden=3, steps=300) for seed in (0, 1))
    probe = ModeConnectivity(other, align=align, loss_fn=loss_fn, num_samples=TRAINED_ON)
    found = probe.evaluate(run, TensorDataset(*digits()))
    barrier = value(found, "connectivity/barrier")
    assert 0.85 / 3 < barrier < 3 * 1.01
    assert 4.5 / 3 < 100 * value(found, "connectivity/error_barrier") < 3 * 16
    assert 0 < value(found, "connectivity/aligned/barrier") < barrier / 5  # published: 15 to 50 times lower


@pytest.mark.parametrize(("width", "rise", "best"), [(128, 0.769, 0.21), (512, 0.076, 0.020)])
def test_half_a_network_costs_what_was_published(width: int, rise: float, best: float) -> None:
    net = trained(0, width, hidden=2, steps=400)
    probe = DropoutStability(halves=20, loss_fn=loss_fn, num_samples=TRAINED_ON)
    found = probe.evaluate(net, TensorDataset(*digits()))
    assert rise / 3 < value(found, "dropout/rise") < 3 * rise
    assert value(found, "dropout/rise_best") < min(3 * best, value(found, "dropout/rise"))
