"""The stability ratio in fits that are healthy, and in one that is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lightning_probes import EveryNSteps, Sharpness
from tests.callbacks.models import Supervised, loader, trainer


class Tabular(nn.Module):
    """An embedding whose rows seldom have a gradient, and some numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.net = nn.Embedding(40, 4), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([self.embedding(x[:, 0].long()), x[:, 1:]], 1))
        return out


class Forecast(nn.Module):
    """The next value of a series, by a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 12, batch_first=True), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(x[..., None])[0][:, -1])
        return out


def table() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    kind, numbers = torch.randint(0, 40, (120, 1), generator=generator), torch.randn(120, 4, generator=generator)
    y = 3 * torch.randn(40, 1, generator=generator)[kind[:, 0]] + torch.sin(2 * numbers[:, :1])
    return torch.cat([kind, numbers], 1), y


def series() -> tuple[Tensor, Tensor]:
    time = torch.arange(120.0)
    windows = (10 * torch.sin(time / 6) + 0.1 * time).unfold(0, 13, 1)
    return windows[:, :12], windows[:, 12:]


def fit(net: nn.Module, data: tuple[Tensor, Tensor], optimizer: Any, probe: Sharpness, **kwargs: Any) -> int:
    """Steps taken, 24 if nothing ends the run, on batches of 16."""
    run = trainer(max_steps=24, max_epochs=-1, callbacks=[probe], **kwargs)
    run.fit(Supervised(net, mse_loss, optimizer), loader(*data, batch_size=16))
    return int(run.global_step)


@pytest.mark.parametrize(
    ("make", "data", "lr", "clip"),
    [
        (Tabular, table, 1e-2, None), (Tabular, table, 1e-3, 0.05),
        (Forecast, series, 3e-2, None), (Forecast, series, 1e-3, 0.1),
    ],
    ids=["table", "table, clipped", "series", "series, clipped"],
)  # fmt: skip
def test_fit_whose_loss_falls_is_never_called_unstable(
    make: Callable[[], nn.Module], data: Callable[[], tuple[Tensor, Tensor]], lr: float, clip: float | None
) -> None:
    torch.manual_seed(0)
    probe = Sharpness(quantities=("lambda_max",), schedule=EveryNSteps(1), on_flag="stop")
    steps = fit(make(), data(), lambda p: torch.optim.AdamW(p, lr=lr), probe, gradient_clip_val=clip)
    assert steps == 24
    assert probe.history[-1]["sharpness/loss"] < probe.history[0]["sharpness/loss"]
    ratios = [entry["sharpness/stability_ratio"] for entry in probe.history if "sharpness/stability_ratio" in entry]
    assert len(ratios) == 24 - 10  # before, the preconditioner is a mean over fewer gradients than the momentum
    assert max(ratios) < 2


def test_fit_that_diverges_is_ended() -> None:
    torch.manual_seed(0)
    probe = Sharpness(quantities=("lambda_max",), schedule=EveryNSteps(1), on_flag="stop")
    steps = fit(Forecast(), series(), lambda p: torch.optim.SGD(p, lr=1.0), probe)
    assert steps < 24
    assert probe.history[-1]["sharpness/flag/unstable"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(torch.optim.Adam, eps=1e-12)], ids=["sgd", "adam"])
def test_clipping_by_norm_scales_the_ratio_as_it_scales_the_step(optimizer: Any) -> None:
    """With a learning rate this small all steps see one gradient, and Adam's steps don't depend on its scale."""
    x, y = series()
    ratios = []
    for clip in (None, 1e-2, 1e9):
        torch.manual_seed(0)
        module = Supervised(Forecast(), mse_loss, lambda p: optimizer(p, lr=1e-7))
        probe = Sharpness(quantities=("lambda_max",), schedule=EveryNSteps(12, start=12))
        run = trainer(max_steps=13, max_epochs=-1, callbacks=[probe], gradient_clip_val=clip)
        run.fit(module, loader(x, y, batch_size=len(x)))
        ratios.append(probe.history[-1]["sharpness/stability_ratio"])
    gradients = torch.autograd.grad(mse_loss(module(x), y), list(module.parameters()))
    length = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
    assert length > 10
    plain, clipped, far = ratios
    assert far == plain
    assert clipped == pytest.approx(plain * 1e-2 / length if optimizer is torch.optim.SGD else plain, rel=1e-2)
