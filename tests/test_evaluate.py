"""`evaluate` measures without a Trainer what the same probe measures inside a fit, and leaves the module as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_probes import AtFitEnd, Curve, EveryNSteps, Heatmap, Probe, Result, Scalar, Surface
from lightning_probes.probing import ModelView, ProbeArguments
from lightning_probes.probing.run.init_state import capture_state
from lightning_probes.testing.zoo import CASES
from lightning_probes.testing.zoo.data import labelled
from lightning_probes.testing.zoo.modules import mlp
from tests.test_undisturbed import eventful
from tests.tester import BY_LOGITS, EVERY, PROBES, REFUSES, assert_same, fit, flatten, probe, state_of, told

EXACT = {"fisher": {"labels": "exact"}}
ANEW_AT_EACH_STEP = {"cka/null_p95", "linear/null_p95"}
ONLY_IN_A_FIT = {
    "sharpness/stability_ratio", "sharpness/flag/edge_of_stability", "sharpness/flag/unstable",
    "regime/stability_ratio",
}  # fmt: skip


def assert_equal_results(found: dict[str, Result], expected: dict[str, Result]) -> None:
    for key in expected:
        np.testing.assert_allclose(numbers(found[key]), numbers(expected[key]), rtol=1e-4, atol=1e-6, err_msg=key)


def numbers(result: Result) -> Any:
    if isinstance(result, Scalar):
        return [result.value, result.standard_error or 0.0]
    if isinstance(result, Curve):
        return result.y
    return result.values if isinstance(result, Heatmap | Surface) else float(result.raised)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (case, kind)
        for case in ("cnn", "dict_with_labels", "graph_batch", "unscales_in_eval", "vit")
        for kind in EVERY
        if case in CASES and case not in REFUSES.get(kind, ()) and (case == "vit") == (kind not in PROBES)
    ],
)
def test_evaluate_equals_the_measurement_at_the_end_of_a_fit(case: str, kind: str) -> None:
    arguments = {**told(case, kind), **EXACT.get(kind, {}), "data": "train"}
    in_fit = probe(kind, schedule=AtFitEnd(), **arguments)
    run = fit(CASES[case].make, [in_fit])

    alone = probe(kind, **arguments).evaluate(run.module, run.fit.train, init_state=in_fit.progress.log.initial)

    same = in_fit.results.keys() - ONLY_IN_A_FIT - ANEW_AT_EACH_STEP
    assert_equal_results(alone, {key: in_fit.results[key] for key in same})


@pytest.mark.parametrize("kind", PROBES)
def test_evaluate_equals_the_measurement_at_step_zero_random_numbers_included(kind: str) -> None:
    in_fit = probe(kind, schedule=EveryNSteps(1, stop=0), data="train")
    run = fit(CASES["cnn"].make, [in_fit])
    fresh = fit(CASES["cnn"].make, max_steps=0)

    alone = probe(kind).evaluate(fresh.module, run.fit.train, init_state=capture_state(fresh.module))

    assert_equal_results(alone, {key: in_fit.results[key] for key in in_fit.results.keys() - ONLY_IN_A_FIT})


@pytest.mark.parametrize("kind", PROBES)
def test_evaluate_leaves_the_module_as_it_was(kind: str) -> None:
    made = eventful()
    loss = made.module.training_step(next(iter(made.train)), 0)
    loss.backward()  # gradients, metric states, counters and lists that must stay
    made.module.net[3].eval()
    before = dict(flatten(state_of(made.module)))

    results = probe(kind, num_samples=16).evaluate(made.module, made.train, init_state=capture_state(made.module))

    assert any(isinstance(result, Scalar) for result in results.values())
    assert_same(dict(flatten(state_of(made.module))), before)


def test_evaluate_takes_any_module_and_a_dataset() -> None:
    def loss_fn(module: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(module(batch[0]), batch[1])

    module = mlp()
    for kind in PROBES:
        arguments = {} if kind in BY_LOGITS else {"loss_fn": loss_fn}
        results = probe(kind, **arguments).evaluate(module, labelled(4), init_state=mlp().state_dict())
        assert any(isinstance(result, Scalar) and result.value > 0 for result in results.values())


def test_evaluate_reads_the_initialisation_from_a_checkpoint_file(tmp_path: Any) -> None:
    made = CASES["cnn"].make()
    other = CASES["cnn"].make().module
    torch.save({"state_dict": other.state_dict()}, tmp_path / "init.ckpt")

    found = probe("interpolation").evaluate(made.module, made.train, init_state=tmp_path / "init.ckpt")
    same = probe("interpolation", init_state=tmp_path / "init.ckpt").evaluate(made.module, made.train)

    ends = zip(made.module.parameters(), other.parameters(), strict=True)
    moved = torch.cat([(now - start).detach().flatten() for now, start in ends])
    assert found["interpolation/distance"].value == pytest.approx(float(moved.norm()), rel=1e-5)  # type: ignore[union-attr]
    assert_equal_results(same, found)


def test_line_without_a_start_is_an_error() -> None:
    made = CASES["tuple_batch"].make()
    with pytest.raises(MisconfigurationException, match="init_state="):
        probe("interpolation").evaluate(made.module, made.train)


@pytest.mark.parametrize("kind", PROBES)
def test_fits_with_the_same_probe_are_equal(kind: str) -> None:
    """Nothing of one run, or of an `evaluate` in its middle, is left for the next."""
    measured, other = probe(kind), CASES["lstm"].make()

    class Evaluates(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            measured.evaluate(other.module, other.train, init_state=other.module.state_dict())

    fit(CASES["tuple_batch"].make, [measured])
    first = dict(measured.results)
    fit(CASES["tuple_batch"].make, [measured, Evaluates()])

    for key, result in first.items():
        np.testing.assert_array_equal(numbers(measured.results[key]), numbers(result), err_msg=key)


def test_repeated_evaluations_are_equal() -> None:
    made = CASES["cnn"].make()
    probes: list[Probe] = [probe(kind) for kind in PROBES]
    initial = CASES["cnn"].make().module.state_dict()
    for each in probes:
        first = each.evaluate(made.module, made.train, init_state=initial)
        second = each.evaluate(made.module, made.train, init_state=initial)
        for key, result in first.items():
            np.testing.assert_array_equal(numbers(second[key]), numbers(result), err_msg=key)


@pytest.mark.parametrize("kind", [kind for kind in PROBES if PROBES[kind].needs_init_state])
@pytest.mark.parametrize(("then", "now"), [(torch.bfloat16, torch.float64), (torch.float64, torch.float32)])
def test_an_initialisation_of_another_dtype_is_cast_to_that_of_the_module(
    kind: str, then: torch.dtype, now: torch.dtype
) -> None:
    def cast(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}

    case = CASES["cnn"].make()
    module, state = case.module.to(now), capture_state(CASES["cnn"].make().module.to(now))
    train = [(x.to(now), y) for x, y in case.train]

    def measure(initial: dict[str, torch.Tensor]) -> dict[str, Result]:
        return probe(kind).evaluate(module, train, init_state=initial)

    state = {name: t.to(then).to(t.dtype) for name, t in state.items()}  # what both can hold
    assert_equal_results(measure(cast(then)), measure(state))


class Remembering(Probe):
    """Keeps in containers of its own what it has found out."""

    defaults = ProbeArguments(name="remembering", schedule=AtFitEnd())

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.found: dict[str, int] = {}
        self.seen: list[int] = []

    def prepare(self, view: ModelView) -> None:
        self.found["parameters"] = len(view.params)
        self.seen.append(view.step)

    def measure(self, view: ModelView) -> Iterator[Result]:
        yield Scalar("parameters", self.found["parameters"])


def test_what_a_probe_keeps_in_containers_stays_with_the_evaluation() -> None:
    each = Remembering(loss_fn=lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]))
    results = each.evaluate(mlp(), labelled(4))
    assert results["remembering/parameters"].value > 0
    assert (each.found, each.seen) == ({}, [])
