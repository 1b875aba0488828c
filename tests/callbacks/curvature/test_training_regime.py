"""TrainingRegime names what a wide network does at a learning rate below and above 2 over its curvature."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps, Flag, LogSpacedSteps, Scalar, Sharpness, TrainingRegime

SAMPLES = 48


class Wide(L.LightningModule):
    """One hidden layer in NTK parametrisation, squared loss, gradient descent."""

    def __init__(self, activation: Callable[[Tensor], Tensor], width: int = 256) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(width, 8)), nn.Parameter(torch.randn(2, width))
        self.activation, self.lr = activation, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x @ self.first.T / 8**0.5) @ self.second.T / len(self.first) ** 0.5

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().sum() / (2 * len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def data(seed: int) -> DataLoader[tuple[Tensor, ...]]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 8, generator=draws)
    return DataLoader(TensorDataset(x, torch.stack([x[:, 0].sign(), x[:, 1] * x[:, 2]], 1)), SAMPLES)


def linear(x: Tensor) -> Tensor:
    return x


def trained(
    times: float, seed: int, steps: int, activation: Callable[[Tensor], Tensor] = torch.relu, **arguments: object
) -> tuple[TrainingRegime, Trainer]:
    torch.manual_seed(seed)
    module, samples = Wide(activation), data(seed)
    curvature = Sharpness(quantities=("lambda_max",)).evaluate(module, samples)["sharpness/lambda_max"].value
    module.lr = times / curvature
    probe = TrainingRegime(**{"on_flag": "stop", **arguments})  # type: ignore[arg-type]
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[probe], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, samples)
    return probe, trainer


def last(probe: TrainingRegime) -> dict[str, float]:
    return {key.removeprefix("regime/"): value for key, value in probe.history[-1].items()}


def test_below_the_threshold_it_is_lazy() -> None:
    probe, _ = trained(0.5, 0, 60)
    found = last(probe)
    assert found["regime"] == 0
    assert found["peak_loss_ratio"] == 1
    assert found["lambda_ratio"] == pytest.approx(1, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("times", "activation"), [(3.0, linear), (3.0, torch.relu)])
def test_a_healthy_catapult_is_never_stopped(times: float, activation: Callable[[Tensor], Tensor]) -> None:
    """Twenty seeds; a rule that judged by two events in a row would stop some at step 2."""
    for seed in range(20):
        probe, trainer = trained(times, seed, 130, activation, schedule=LogSpacedSteps(8))
        assert trainer.global_step == 130, seed
        found = last(probe)
        assert found["regime"] == 1, seed
        assert found["peak_loss_ratio"] > 1.05, seed
        assert found["lambda_ratio"] < 0.9, seed


def test_a_run_that_diverges_is_stopped() -> None:
    probe, trainer = trained(8.0, 0, 400, linear)
    found = last(probe)
    assert trainer.global_step < 400
    assert (found["regime"], found["flag/divergent"]) == (3, 1)


def test_the_ratio_is_half_the_learning_rate_times_the_curvature() -> None:
    probe, trainer = trained(1.2, 1, 20, schedule=EveryNSteps(5))
    (group,) = trainer.optimizers[0].param_groups
    for entry in probe.history:
        assert entry["regime/stability_ratio"] == pytest.approx(group["lr"] * entry["regime/lambda_max"] / 2, rel=1e-5)
    assert probe.history[0]["regime/stability_ratio"] == pytest.approx(0.6, rel=1e-3)


def test_it_measures_what_sharpness_measures() -> None:
    torch.manual_seed(0)
    module, samples = Wide(torch.relu), data(0)
    found = TrainingRegime().evaluate(module, samples)
    curvature = Sharpness(quantities=("lambda_max",)).evaluate(module, samples)
    for key in ("loss", "lambda_max"):
        mine, other = found[f"regime/{key}"], curvature[f"sharpness/{key}"]
        assert isinstance(mine, Scalar)
        assert isinstance(other, Scalar)
        assert mine.value == pytest.approx(other.value, rel=1e-6)
    assert not any(isinstance(each, Flag) and each.raised for each in found.values())
