"""LightningCLI builds every probe from the command line, schedules included."""

from __future__ import annotations

import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        (FisherTrace, "per_layer", True),
        (InitInterpolation, "num_alphas", 7),
        (LayerCKA, "layers", ["layer"]),
        (Sharpness, "rho", 0.2),
    ],
)
def test_probe_is_built_with_its_arguments(kind: type[Probe], argument: str, value: object) -> None:
    arguments = [
        f"--trainer.callbacks+=lightning_probes.{kind.__name__}",
        f"--trainer.callbacks.{argument}={value}",
        "--trainer.callbacks.schedule=lightning_probes.EveryNSteps",
        "--trainer.callbacks.schedule.n=9",
        "--trainer.callbacks.on_flag=stop",
    ]
    cli = LightningCLI(BoringModel, run=False, args=arguments, save_config_callback=None)
    [probe] = [callback for callback in cli.trainer.callbacks if isinstance(callback, kind)]
    assert getattr(probe, argument) == value
    assert probe.schedule == EveryNSteps(9)
    assert probe.on_flag == "stop"
