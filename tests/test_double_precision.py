"""Devices without double precision, as Apple's GPUs are, and how often an event waits for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_probes import AtFitEnd, EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Result, Sharpness
from lightning_probes.functional import wide
from lightning_probes.functional.curvature import lanczos
from lightning_probes.probing.view import ModelView
from tests.callbacks.models import Supervised, classification, loader, trainer
from tests.reads import Seen, device_without_float64

PROBES: dict[str, tuple[type[Probe], dict[str, Any]]] = {
    "fisher": (FisherTrace, {"per_layer": True}),
    "exact fisher": (FisherTrace, {"labels": "exact"}),
    "interpolation": (InitInterpolation, {"num_alphas": 3}),
    "interpolated statistics": (InitInterpolation, {"num_alphas": 3, "batch_norm": "eval"}),
    "cka": (LayerCKA, {"per_layer": True}),
    "sharpness": (Sharpness, {"quantities": ("lambda_max", "sam", "trace")}),
    "trace": (Sharpness, {"quantities": ("trace",), "per_layer": True}),
}


def network(layers: int) -> Supervised:
    torch.manual_seed(0)
    hidden = [part for _ in range(layers) for part in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())]
    net = nn.Sequential(nn.Linear(4, 8), *hidden, nn.Linear(8, 3))
    return Supervised(net, optimizer=lambda parameters: torch.optim.Adam(parameters, betas=(0.0, 0.9)))


def events(probe: Probe, layers: int, batches: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Seen, int]]:
    """What was seen in each event of a fit, and how many steps Lanczos took."""
    found: list[tuple[Seen, int]] = []
    steps: Counter[str] = Counter()
    measure, top = probe.measure, lanczos._top_of_tridiagonal

    def watched(view: ModelView) -> Iterator[Result]:
        steps.clear()
        with device_without_float64(monkeypatch) as seen:
            results = [*measure(view)]
        found.append((seen, steps["lanczos"]))
        yield from results

    def counted(*args: Any) -> Any:
        steps["lanczos"] += 1
        return top(*args)

    monkeypatch.setattr(probe, "measure", watched)
    monkeypatch.setattr(lanczos, "_top_of_tridiagonal", counted)
    data = loader(*classification(samples=8 * batches), batch_size=8)
    L.seed_everything(0, verbose=False)
    trainer(max_steps=2, callbacks=[probe]).fit(network(layers), data)
    return found


def make(name: str, batches: int) -> Probe:
    kind, arguments = PROBES[name]
    return kind(schedule=[EveryNSteps(1), AtFitEnd()], num_samples=8 * batches, micro_batch_size=8, **arguments)


@pytest.mark.parametrize("name", PROBES)
def test_a_device_without_double_precision_meets_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = events(make(name, 2), 2, 2, monkeypatch)
    assert len(seen) == 3
    assert [event.wide for event, _ in seen] == [[], [], []]


@pytest.mark.parametrize("name", PROBES)
def test_an_event_reads_the_device_as_often_whatever_the_layers_and_micro_batches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for once a step of Lanczos. The first event remembers what later ones compare with, and is left out."""
    counts = {}
    for layers, batches in ((2, 2), (6, 2), (2, 6)):
        (_, _), *later = events(make(name, batches), layers, batches, monkeypatch)
        counts[layers, batches] = [event.reads.total() - steps for event, steps in later]
    assert counts[6, 2] == counts[2, 2] == counts[2, 6]
    assert max(counts[2, 2]) <= 12


@pytest.mark.parametrize("name", PROBES)
def test_results_without_double_precision_are_those_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = network(2), loader(*classification(samples=24), batch_size=8)
    initial = {**module.state_dict(), **{name: p.detach() / 2 for name, p in module.named_parameters()}}

    def found() -> dict[str, Any]:
        results = make(name, 3).evaluate(module, data, init_state=initial)
        return {f"{key} {part}": value for key, result in results.items() for part, value in _numbers(result).items()}

    double = found()
    monkeypatch.setattr(wide, "_WITHOUT_FLOAT64", {"cpu"})
    single = found()
    assert any((single[key] != values).any() for key, values in double.items())
    for key, values in double.items():
        np.testing.assert_allclose(single[key], values, rtol=1e-4, atol=1e-5, err_msg=key)


def _numbers(result: Result) -> dict[str, Any]:
    fields = {name: getattr(result, name, None) for name in ("value", "standard_error", "y", "values")}
    return {name: np.asarray(field) for name, field in fields.items() if field is not None}
