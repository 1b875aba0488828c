"""Paths round the barrier between two trained networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNSteps, ModeConnectivity, Result
from tests.callbacks.models import Supervised, loader, trainer

KINDS = ["bezier", "string"]


def rings(samples: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes that no linear model tells apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 2, generator=generator)
    radius = x.norm(dim=1)
    return x, (radius > 0.8).long() + (radius > 1.6).long()


X, Y = rings()


def trained(seed: int, batch_norm: bool = False) -> Supervised:
    torch.manual_seed(seed)
    norm = [nn.BatchNorm1d(16)] if batch_norm else []
    layers = nn.Sequential(nn.Linear(2, 16), *norm, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    module = Supervised(layers, optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
    trainer(max_epochs=20).fit(module, loader(X, Y, batch_size=32))
    return module


def connect(module: nn.Module, other: nn.Module, **arguments: Any) -> dict[str, Result]:
    found = ModeConnectivity(other, **arguments).evaluate(module, loader(X, Y, batch_size=32))
    return {key.removeprefix("connectivity/"): result for key, result in found.items()}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_path_is_lower_than_the_straight_line_and_ends_at_the_two_runs(kind: str, batch_norm: bool) -> None:
    module, other = trained(0, batch_norm), trained(1, batch_norm)
    found = connect(module, other, path=kind, path_steps=300)
    chord, path = found["loss"], found["path/loss"]
    assert path.y.max() - path.y[[0, -1]].max() < 0.5 * (chord.y.max() - chord.y[[0, -1]].max())
    assert found["path/max_loss"].value == path.y.max()
    assert [path.x[0], path.x[-1]] == [0, 1]
    assert (np.diff(path.x) > 0).all()
    assert path.y[[0, -1]] == pytest.approx(chord.y[[0, -1]], rel=1e-9)
    assert found["path/length_over_chord"].value > 1


@pytest.mark.parametrize("kind", KINDS)
def test_points_of_the_path_are_the_evaluated_loss_of_the_training_data(kind: str) -> None:
    module, other = trained(0), trained(1)
    found = connect(module, other, path=kind, path_steps=40)
    assert found["path/loss"].y[0] == pytest.approx(float(cross_entropy(module(X).detach(), Y)), rel=1e-5)
    assert found["path/loss"].y[-1] == pytest.approx(float(cross_entropy(other(X).detach(), Y)), rel=1e-5)


def test_passes_count_what_a_path_has_taken() -> None:
    module, other = trained(0), trained(1)
    steps, batches = 64, 8
    assert connect(module, other, path="bezier", path_steps=steps)["path/passes"].value == steps / batches


@pytest.mark.parametrize(("kind", "steps"), [("bezier", 10), ("string", 400)])
def test_a_path_that_still_falls_is_not_converged_and_one_that_can_not_fall_is(kind: Any, steps: int) -> None:
    module, other = trained(0), trained(1)
    found = connect(module, other, path=kind, path_steps=steps)["flag/not_converged"]
    assert found.raised
    assert found.value > found.threshold
    same = connect(module, module, path=kind, path_steps=steps, path_lr=1e-6)
    assert not same["flag/not_converged"].raised
    assert same["path/loss"].y == pytest.approx(same["loss"].y[0], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_path_is_found_again(kind: str) -> None:
    module, other = trained(0), trained(1)
    once, again = (connect(module, other, path=kind, path_steps=40) for _ in range(2))
    assert np.array_equal(once["path/loss"].y, again["path/loss"].y)


@pytest.mark.parametrize("schedule", [EveryNSteps(10), [AtFitEnd(), AtCheckpoints()]])
def test_a_path_is_refused_at_any_other_time_than_the_end_of_the_fit(schedule: Any) -> None:
    with pytest.raises(ValueError, match=r"path='string' takes as long .* pass schedule=AtFitEnd\(\), got schedule="):
        ModeConnectivity({}, path="string", schedule=schedule)
    assert ModeConnectivity({}, path="string").schedule == AtFitEnd()
    assert ModeConnectivity({}, path="bezier", schedule=[AtFitEnd()], num_samples=64).num_samples == 64


def test_a_path_needs_statistics_that_are_re_estimated() -> None:
    with pytest.raises(ValueError, match="pass batch_norm='recalibrate'"):
        ModeConnectivity({}, path="bezier", batch_norm="eval")


def test_a_path_is_found_once_at_the_end_of_a_fit() -> None:
    probe = ModeConnectivity(trained(1), path="bezier", path_steps=20)
    module = trained(0)
    trainer(max_epochs=1, callbacks=[probe]).fit(module, loader(X, Y, batch_size=32))
    assert [entry["step"] for entry in probe.history] == [8]
    assert "connectivity/path/max_loss" in probe.history[0]
