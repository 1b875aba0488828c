"""Measured beside promised."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import idle, importing
from benchmarks.budgets import accounting, events, lanczos, memory, twin, two_processes, units
from benchmarks.budgets.features_and_flow import FEATURES_AND_FLOW
from benchmarks.budgets.measurement import Measure, Measured, Measurement, cell
from benchmarks.cells import Row


def rows(options: Any, directory: Path) -> Iterator[Row]:
    """A row a budget; one that can't be measured has its exception, and does not hold."""
    measurement = Measurement(options, directory)
    for what, (budget, measure) in BUDGETS.items():
        if options.budgets is not None and not any(what.startswith(name) for name in options.budgets):
            continue
        row: Row = {"what": what, "budget": budget}
        try:
            found = measure(measurement)
            row |= {"measured": found.value, "holds": found.value <= budget, "how": found.how}
            if found.lowest is not None:
                row["lowest"] = found.lowest
        except Exception as error:
            row |= {"exception": str(error), "holds": False}
        yield row


def _idle(measurement: Measurement, monitors: bool = False) -> Measured:
    number = idle.STEPS // 10 if measurement.options.quick else idle.STEPS
    found = measurement.apart(idle.steps, number, monitors, threads=1)
    step = found["empty_milliseconds"]
    hooks = found["microseconds_of_hooks"] - found["microseconds_of_empty"]
    how = (
        f"step of {step:.3g} ms, {found['steps']} pairs of steps, quartiles {found['ratio_low']:.4g} to "
        f"{found['ratio_high']:.4g}; the hooks alone add {hooks:.2g} µs, {hooks / step / 10:.2g} %"
    )
    return Measured(found["ratio"], how)


def _fisher_memory(measurement: Measurement) -> Measured:
    found = measurement.apart(memory.growth, "resnet20", measurement.directory, measurement.scale)
    return Measured(found["ratio"], f"{found['small']:.0f} MiB, then {found['large']:.0f} MiB")


def _fisher_peak(measurement: Measurement) -> Measured:
    found = measurement.apart(memory.of_fisher, 8 if measurement.options.quick else 128)
    batch = found["batch"]
    how = (
        f"{found['small']:.3g} GiB on {batch} samples and {found['large']:.3g} on {4 * batch}, {batch} a pass; "
        "the line through both"
    )
    return Measured(found["all"], how)


def _cka_peak(measurement: Measurement) -> Measured:
    samples = 64 if measurement.options.quick else 1024
    return Measured(measurement.apart(memory.of_cka, samples, 128)["peak"], f"{samples} samples, 128 a pass")


def _products(measurement: Measurement) -> Measured:
    row = measurement.cell("lambda_max", "resnet20")
    return Measured(row["products"], f"relative residual {row['residual']:.1e}, relative error {row['error']:.1e}")


def _products_later(measurement: Measurement) -> Measured:
    first = measurement.cell("lambda_max", "conv1d")  # a ResNet-20 takes the least that is ever taken at once
    later = measurement.cell("lambda_max", "conv1d", "ours, second event")
    return Measured(
        later["products"] / first["products"], f"{later['products']} after {first['products']}, ten steps later"
    )


def _product_overhead(measurement: Measurement) -> Measured:
    row = measurement.cell("lambda_max", "resnet20")
    return Measured(row["ratio"] / row["products"], f"{row['ratio']:.3g} Hessian-vector products for {row['products']}")


def _pyhessian(model: str) -> Measure:
    def measure(measurement: Measurement) -> Measured:
        options = measurement.options
        arguments = (model, measurement.directory, options.rounds, measurement.scale, options.limit)
        found = measurement.apart(lanczos.against_pyhessian, *arguments)
        how = (
            f"ours {found['seconds']:.3g} s to error {found['error']:.1e}; PyHessian {found['other_seconds']:.3g} s in "
            f"{found['iterations']} iterations to {found['other_error']:.1e}"
        )
        return Measured(found["ratio"], how)

    return measure


def _two(name: str, model: str) -> Measure:
    def measure(measurement: Measurement) -> Measured:
        rounds = measurement.options.rounds
        arguments = (name, model, measurement.directory, rounds, measurement.scale)
        found = measurement.apart(two_processes.compare, *arguments, threads=1)
        return Measured(found["ratio"], f"largest relative difference of the results {found['difference']:.1e}")

    return measure


def _fit(measurement: Measurement) -> Measured:
    options = measurement.options
    arguments = ("resnet20", measurement.directory, min(3, options.rounds), measurement.scale, options.limit)
    cost = measurement.apart(events.costs, *arguments)
    first = {name: cost[f"{name} first"] for name in ("fisher", "cka", "interpolation", "sharpness")}
    found = accounting.shares(cost, first)
    parts = ", ".join(
        f"{name} {share.share:.2%} ({share.events} events of {cost[name]:.3g} passes)" for name, share in found.items()
    )
    without = sum(share.share for share in accounting.shares(first).values())
    products = f"{cost['products first']} products first, then {cost['products']}"
    return Measured(
        sum(share.share for share in found.values()), f"{parts}; {products}; {without:.2%} without the warm start"
    )


def _twin(measurement: Measurement) -> Measured:
    found = measurement.apart(twin.building, measurement.options.rounds)
    return Measured(
        found["milliseconds"], f"ResNet of {found['millions']:.3g} million parameters in {found['modules']} modules"
    )


def _units(measurement: Measurement) -> Measured:
    found = measurement.apart(units.of_vit_base, min(5, measurement.options.rounds), measurement.options.quick)
    how = (
        f"{found['millions']:.3g} million parameters, {found['groups']} groups, {found['passes']} passes of "
        f"{found['of_a_pass']:.3g} s over two samples; {found['low']:.3g} to {found['high']:.3g} s"
    )
    return Measured(found["seconds"], how)


def _import(measurement: Measurement) -> Measured:
    found = importing.added_seconds(measurement.options.rounds, measurement.options.clock)
    return Measured(found["seconds"], f"`import lightning` takes {found['of_lightning']:.3g} s")


BUDGETS: dict[str, tuple[float, Measure]] = {
    "idle: four probes, none due, over four empty callbacks": (1.01, _idle),
    "idle: a monitor, not due, over an empty callback": (1.02, partial(_idle, monitors=True)),
    "fisher: ResNet-20, over forward and backward": (1.4, cell("fisher", "resnet20")),
    "fisher: ViT, over forward and backward": (1.4, cell("fisher", "vit")),
    "fisher: GPT-2, over forward and backward": (1.4, cell("fisher", "gpt2")),
    "fisher: Conv1d net, over forward and backward": (1.4, cell("fisher", "conv1d")),
    "fisher: peak memory, four times the samples over once": (1.2, _fisher_memory),
    "fisher: 4,096 samples of ResNet-18, peak memory in GiB over the model": (2.0, _fisher_peak),
    "cka: 150 layers, 1,024 samples, peak memory in GiB": (1.0, _cka_peak),
    "cka: 50 layers of ResNet-18, over one forward": (1.3, cell("cka", "resnet18")),
    "cka: 50 layers of ResNet-18, over one forward, two threads": (1.5, cell("cka", "resnet18", threads=2)),
    **{
        f"lambda_max: {title}, over PyHessian to the same error": (1 / 3, _pyhessian(model))
        for title, model in (
            ("ResNet-20", "resnet20"), ("GPT-2", "gpt2"), ("LSTM", "lstm"), ("Conv1d net", "conv1d"), ("MLP", "mlp")
        )
    },
    "lambda_max: matrix-vector products": (30, _products),
    "lambda_max: over its matrix-vector products": (1.15, _product_overhead),
    "lambda_max: products of a later event over those of the first, Conv1d net": (0.999, _products_later),
    "interpolation: ViT, 25 points, over 25 forwards": (1.1, cell("interpolation", "vit")),
    "interpolation: MLP, 25 points, over 25 forwards": (1.1, cell("interpolation", "mlp")),
    "interpolation: ResNet-20 with BatchNorm, over 25 forwards": (2.4, cell("interpolation", "resnet20")),
    "connectivity: ViT, 11 points, over 11 forwards": (1.1, cell("connectivity", "vit")),
    "connectivity: ResNet-20 with BatchNorm, over 11 forwards": (2.4, cell("connectivity", "resnet20")),
    "plane: ViT, 50 points, over their passes": (1.1, cell("plane", "vit")),
    "plane: ResNet-20, 50 points, over their passes": (1.1, cell("plane", "resnet20")),
    "plane: ResNet-20 with BatchNorm re-estimated, over its 50 forwards and the kinks": (
        2.4, cell("plane", "resnet20", "ours, batch_norm='recalibrate'")
    ),
    "dropout: ViT, over a forward a network": (1.1, cell("dropout", "vit")),
    "dropout: ResNet-20 with BatchNorm, over a forward a network": (2.4, cell("dropout", "resnet20")),
    "permutation groups: ViT-B, seconds beyond its passes over two samples": (1.0, _units),
    **{
        f"two processes: {name}, {model}, over one": (0.65, _two(name, model))
        for name, model in (
            ("fisher", "resnet20"), ("cka", "resnet20"), ("interpolation", "resnet20"), ("sharpness", "resnet20")
        )
    },
    "fit of CIFAR size: share of all four at their defaults": (0.1, _fit),
    "twin: milliseconds to build one, 60 million parameters": (25, _twin),
    **FEATURES_AND_FLOW,
    "import: seconds beside `import lightning`": (0.3, _import),
}  # fmt: skip
