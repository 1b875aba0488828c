"""Budgets of the probes of features and flow, and of what is counted in passes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.budgets import passes, reading_off, vit_base
from benchmarks.budgets.measurement import Measure, Measured, Measurement, cell
from lightning_probes import AttentionDistance, Probe, ResidualFlow

_SAMPLES = 2048


def _linear(measurement: Measurement) -> Measured:
    options = measurement.options
    samples = int(_SAMPLES * measurement.scale)
    found = measurement.apart(reading_off.of_a_layer, min(5, options.rounds), samples, options.limit)
    how = (
        f"{found['layers']} layers, {samples} samples; {found['low']:.3g} to {found['high']:.3g} s; a forward pass "
        f"takes {found['of_a_pass']:.3g} s"
    )
    return Measured(found["seconds"], how, found["low"])


def _vit_base(make: Callable[..., Probe]) -> Measure:
    def measure(measurement: Measurement) -> Measured:
        options = measurement.options
        found = measurement.apart(vit_base.compare, make, min(3, options.rounds), options.quick, options.limit)
        how = f"{found['millions']:.3g} million parameters, {found['samples']} samples of 197 tokens in one pass of "
        how += f"{found['of_a_pass']:.3g} s; quartiles {found['low']:.3g} to {found['high']:.3g}"
        return Measured(found["ratio"], how, found["low"])

    return measure


def _counted(make: Callable[..., Probe]) -> Measure:
    def measure(measurement: Measurement) -> Measured:
        found = measurement.apart(passes.of_event, make, "resnet20", measurement.directory, measurement.scale)
        how = f"{found['forward']:g} forward"
        if found["in_forward_mode"]:
            how += f", {found['in_forward_mode']:g} of them in forward mode"
        if found["products"]:
            how += f" and backward, {found['products']} Hessian-vector products"
        return Measured(found["forward"] + found["products"], f"{how}; ResNet-20, counted")

    return measure


FEATURES_AND_FLOW: dict[str, tuple[float, Measure]] = {
    "linear: seconds a layer of 256 features, 2,048 samples, beyond one forward": (0.1, _linear),
    "attention: ViT, over one forward": (1.5, cell("attention", "vit")),
    "attention: GPT-2, over one forward": (1.5, cell("attention", "gpt2")),
    "attention: ViT-B, over one forward": (1.5, _vit_base(AttentionDistance)),
    "residual: ViT, over one forward": (1.5, cell("residual", "vit")),
    "residual: GPT-2, over one forward": (1.5, cell("residual", "gpt2")),
    "residual: ViT-B, over one forward": (1.5, _vit_base(ResidualFlow)),
    "residual: ResNet-20, over one forward": (1.5, cell("residual", "resnet20")),
    "gradient_flow: ViT, over forward and backward": (1.5, cell("gradient_flow", "vit", "ours, auto layers")),
    "gradient_flow: GPT-2, over forward and backward": (1.5, cell("gradient_flow", "gpt2", "ours, auto layers")),
    "gradient_flow: ResNet-20, over forward and backward": (
        1.5, cell("gradient_flow", "resnet20", "ours, auto layers")
    ),
    "passes: linear probes, an event": (1, _counted(passes.linear)),
    "passes: Head2Toe, an event": (1, _counted(passes.head2toe)),
    "passes: training regime, a first event": (32, _counted(passes.regime)),
    "passes: interpolation of 25 points with BatchNorm, linearized": (53, _counted(passes.linearized)),
}  # fmt: skip
