"""Every probe on every model, batch, loss and dataset of the zoo, inside a real fit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest

from lightning_probes import Curve, EveryNSteps, Flag, Heatmap, Probe, Scalar, Surface
from lightning_probes.testing.zoo import CASES, EVERY_CASE
from tests.tester import EVERY, REFUSES, Flat, assert_same, fingerprint, fit, probe, told

# The keys of every run, whatever the data and the model.
ALWAYS = {
    "fisher": {"fisher/trace"},
    "interpolation": {
        "interpolation/loss", "interpolation/max_rise", "interpolation/monotonic", "interpolation/plateau_fraction",
        "interpolation/distance", "interpolation/distance_normalized",
    },
    "cka": {"cka/layers", "cka/to_init", "cka/to_init_mean", "cka/null_p95"},
    "sharpness": {
        "sharpness/lambda_max", "sharpness/lambda_max_residual", "sharpness/stability_ratio", "sharpness/sam",
        "sharpness/loss",
    },
    "connectivity": {
        "connectivity/loss", "connectivity/barrier", "connectivity/barrier_mean", "connectivity/rise_above_ends",
        "connectivity/distance",
    },
    "plane": {"plane/loss", "plane/nonconvexity", "plane/flat_share", "plane/centre_loss"},
    "dropout": {"dropout/rise", "dropout/rise_best", "dropout/suffix_max", "dropout/loss"},
    "regime": {
        "regime/regime", "regime/loss", "regime/lambda_max", "regime/lambda_max_residual", "regime/loss_ratio",
        "regime/peak_loss_ratio", "regime/lambda_ratio",
    },
    "linear": {
        "linear/last", "linear/best", "linear/best_depth", "linear/null_p95", "linear/chance", "linear/head",
        "linear/gap", "linear/depth", "linear/accuracy",
    },
    "gradient_flow": {
        "gradient_flow/norm", "gradient_flow/decades", "gradient_flow/slope", "gradient_flow/stream_decades",
        "gradient_flow/dead",
    },
    "head2toe": {
        "head2toe/relevance", "head2toe/gap", "head2toe/kept", "head2toe/accuracy", "head2toe/last",
        "head2toe/residual",
    },
    "residual": {
        "residual/ratio", "residual/ratio_median", "residual/ratio_max", "residual/ratio_p95", "residual/cosine",
        "residual/blocks",
    },
    "attention": {"attention/distance", *(f"attention/{key}" for key in ("mean", "min", "max", "uniform", "entropy"))},
}  # fmt: skip
# What depends on the case, and what other probes have where `InitInterpolation` has it.
SOMETIMES = {
    "interpolation/accuracy": {"connectivity/error", "connectivity/error_barrier", "dropout/error_rise"},
    "interpolation/val/loss": {"connectivity/val/loss", "connectivity/val/barrier"},
    "interpolation/val/accuracy": {"connectivity/val/error", "connectivity/val/error_barrier"},
    "interpolation/bn_gap": {"connectivity/bn_gap"},
    "fisher/loss": set[str](),
}  # fmt: skip

CLASSES = frozenset({"interpolation/accuracy", "fisher/loss"})
VAL = frozenset({"interpolation/val/loss"})
VAL_CLASSES = VAL | {"interpolation/val/accuracy"}
BN = frozenset({"interpolation/bn_gap"})
# The keys that apply to a case and not everywhere.
EXPECTED: dict[str, frozenset[str]] = {
    "tuple_batch": CLASSES,
    "list_batch": CLASSES | VAL_CLASSES,
    "dict_with_labels": CLASSES,
    "dict_of_other_names": CLASSES,
    "nested_tuples": CLASSES,
    "extra_fields": CLASSES,
    "graph_batch": CLASSES | VAL_CLASSES,
    "inputs_with_weighted_targets": frozenset(),
    "lstm": CLASSES | VAL_CLASSES,
    "gru": CLASSES | VAL_CLASSES,
    "cnn": CLASSES | VAL_CLASSES | BN,
    "resnet": CLASSES | VAL_CLASSES | BN,
    "bert": CLASSES | VAL_CLASSES,
    "vit": CLASSES,
    "gpt2": CLASSES,
    "unscales_in_eval": frozenset({"fisher/loss"}),
    "random_windows": frozenset({"fisher/loss"}),
    "gan": frozenset(),
    "class_weights": CLASSES | VAL_CLASSES,
    "label_smoothing": CLASSES | VAL_CLASSES,
    "regression": VAL | {"fisher/loss"},
    "multi_label": frozenset({"fisher/loss"}),
    "custom_collate": CLASSES,
    "subset_sampler": CLASSES | VAL_CLASSES,
    "weighted_sampler": CLASSES,
    "global_augmentation": CLASSES,
    "stream": CLASSES | VAL_CLASSES,
    "data_module": CLASSES | VAL_CLASSES,
    "several_val_loaders": CLASSES | VAL_CLASSES,
    "dict_of_train_loaders": CLASSES | VAL_CLASSES,
}
# Curvature of a transformer under Adam is what costs most here: once is enough.
ONCE: dict[str, Any] = {"schedule": EveryNSteps(2, start=2, stop=2), "num_samples": 16}
TRANSFORMERS = ("bert", "vit", "gpt2")


def test_every_case_of_the_zoo_is_tried_here() -> None:
    assert CASES.keys() == EVERY_CASE.keys() == EXPECTED.keys()


@cache
def without_probes(name: str) -> Flat:
    return fingerprint(fit(CASES[name].make))


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in CASES for name in EVERY if case not in REFUSES.get(name, ())]
)
def test_probe_measures_in_a_fit_and_leaves_training_as_it_was(case: str, name: str) -> None:
    once = name in ("sharpness", "regime") and case in TRANSFORMERS
    measured = probe(name, **told(case, name), **(ONCE if once else {}))

    run = fit(CASES[case].make, [measured])

    assert_same(fingerprint(run), without_probes(case))
    last = run.trainer.fit_loop.epoch_loop.batch_progress.total.completed
    assert [entry["step"] for entry in measured.history] == ([2] if once else [2, last])
    expected = EXPECTED[case]
    found = {key for key in measured.results if "/flag/" not in key}
    assert ALWAYS[name] <= found
    assert found & with_others(SOMETIMES) == {key for key in with_others(expected) if key.startswith(f"{name}/")}
    assert not raised(measured)
    SENSIBLE[name](measured)


def with_others(keys: Iterable[str]) -> set[str]:
    return {*keys}.union(*(SOMETIMES[key] for key in keys))


def raised(measured: Probe) -> dict[str, str]:
    """Warnings that stand."""
    flags = [flag for flag in measured.results.values() if isinstance(flag, Flag)]
    return {flag.key: flag.message for flag in flags if flag.raised and flag.level == "warning"}


def value(measured: Probe, key: str) -> float:
    result = measured.results[f"{measured.name}/{key}"]
    assert isinstance(result, Scalar)
    assert np.isfinite(result.value)
    return result.value


def error(measured: Probe, key: str) -> float:
    result = measured.results[f"{measured.name}/{key}"]
    assert isinstance(result, Scalar)
    assert result.standard_error is not None
    assert np.isfinite(result.standard_error)
    return result.standard_error


def fisher(measured: Probe) -> None:
    assert value(measured, "trace") > error(measured, "trace") > 0
    assert measured.summary["fisher/trace_max"] >= value(measured, "trace")


def interpolation(measured: Probe) -> None:
    for key, curve in measured.results.items():
        if isinstance(curve, Curve):
            assert curve.x.tolist() == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1]
            assert np.isfinite(curve.y).all()
            if "accuracy" in key:
                assert ((curve.y >= 0) & (curve.y <= 1)).all()
    losses = measured.results["interpolation/loss"].y  # type: ignore[union-attr]
    assert np.ptp(losses) > 0
    assert value(measured, "max_rise") >= max(0.0, float(np.diff(losses).max()))
    assert error(measured, "max_rise") >= 0
    assert value(measured, "monotonic") in (0, 1)
    assert 0 < value(measured, "plateau_fraction") <= 1
    assert 0 < value(measured, "distance") < np.inf
    assert value(measured, "distance_normalized") > 0


def cka(measured: Probe) -> None:
    layers, to_init = (measured.results[f"cka/{key}"] for key in ("layers", "to_init"))
    assert isinstance(layers, Heatmap)
    assert isinstance(to_init, Heatmap)
    assert layers.row_labels == layers.column_labels == to_init.row_labels
    assert np.diag(layers.values) == pytest.approx(1)
    assert layers.values == pytest.approx(layers.values.T)
    assert (abs(layers.values) < 1 + 1e-6).all()
    assert value(measured, "to_init_mean") == pytest.approx(to_init.values.mean())
    assert 0.2 < value(measured, "to_init_mean") <= 1  # a few steps away
    assert -1 < value(measured, "null_p95") < 1


def sharpness(measured: Probe) -> None:
    assert value(measured, "lambda_max") > 0
    assert error(measured, "lambda_max") >= 0
    assert 0 <= value(measured, "lambda_max_residual") <= 1e-3
    assert value(measured, "stability_ratio") > 0
    assert value(measured, "sam") > 0
    assert error(measured, "sam") >= 0


def connectivity(measured: Probe) -> None:
    for curve in measured.results.values():
        if isinstance(curve, Curve):
            assert curve.x.tolist() == [0, 0.5, 1]
            assert np.isfinite(curve.y).all()
    assert value(measured, "barrier") >= 0
    assert value(measured, "barrier_mean") >= value(measured, "rise_above_ends") >= 0
    assert error(measured, "barrier") >= 0
    assert value(measured, "distance") > 0


def plane(measured: Probe) -> None:
    surface = measured.results["plane/loss"]
    assert isinstance(surface, Surface)
    assert surface.values.shape == (3, 3)
    assert np.isfinite(surface.values).all()
    assert surface.values[1, 1] == value(measured, "centre_loss")
    assert np.ptp(surface.values) > 0
    assert 0 <= value(measured, "nonconvexity") <= 1
    assert 1 / 9 <= value(measured, "flat_share") <= 1


def dropout(measured: Probe) -> None:
    assert value(measured, "rise_best") <= value(measured, "rise")
    assert value(measured, "suffix_max") >= value(measured, "rise_best")
    assert error(measured, "rise") >= 0
    assert value(measured, "rise") != 0


def regime(measured: Probe) -> None:
    assert value(measured, "lambda_max") > 0
    assert 0 <= value(measured, "lambda_max_residual") <= 1e-3
    assert value(measured, "regime") in range(-1, 4)
    assert value(measured, "peak_loss_ratio") >= max(1, value(measured, "loss_ratio"))
    assert value(measured, "loss_ratio") == pytest.approx(
        value(measured, "loss") / measured.history[0]["regime/loss"], rel=1e-6
    )


def linear(measured: Probe) -> None:
    layers = measured.results["linear/accuracy"]
    assert isinstance(layers, Heatmap)
    assert value(measured, "best") == pytest.approx(layers.values[:, -1].max())
    assert value(measured, "last") == pytest.approx(layers.values[-1, -1])
    assert error(measured, "best") >= 0
    assert 0 <= value(measured, "best_depth") <= 1
    assert value(measured, "null_p95") <= 1
    assert value(measured, "gap") == pytest.approx(value(measured, "best") - value(measured, "head"))


def gradient_flow(measured: Probe) -> None:
    norms = measured.results["gradient_flow/norm"].y  # type: ignore[union-attr]
    assert (norms > 0).all()
    assert value(measured, "decades") == pytest.approx(np.log10(norms[0] / norms[-1]))
    assert 0 <= value(measured, "dead") < 1
    if len(norms) == 2:
        assert value(measured, "slope") == pytest.approx(-value(measured, "decades"))


def head2toe(measured: Probe) -> None:
    assert value(measured, "gap") == pytest.approx(value(measured, "accuracy") - value(measured, "last"))
    assert error(measured, "gap") >= 0
    assert 0 < value(measured, "kept") <= 0.5
    assert measured.results["head2toe/relevance"].y.sum() == pytest.approx(1)  # type: ignore[union-attr]


def residual(measured: Probe) -> None:
    blocks = measured.results["residual/ratio"]
    assert isinstance(blocks, Heatmap)
    assert value(measured, "blocks") == len(blocks.row_labels) > 0
    assert 0 < value(measured, "ratio_median") <= value(measured, "ratio_max") <= value(measured, "ratio_p95")
    assert -1 <= value(measured, "cosine") <= 1


def attention(measured: Probe) -> None:
    heads = measured.results["attention/distance"]
    assert isinstance(heads, Heatmap)
    assert heads.values.shape[1] == 2
    assert 0 < value(measured, "min") <= value(measured, "mean") <= value(measured, "max")
    assert error(measured, "mean") >= 0
    assert value(measured, "uniform") > 0
    assert value(measured, "entropy") > 0


SENSIBLE: dict[str, Any] = {
    "fisher": fisher, "interpolation": interpolation, "cka": cka, "sharpness": sharpness,
    "connectivity": connectivity, "plane": plane, "dropout": dropout, "regime": regime, "linear": linear,
    "gradient_flow": gradient_flow, "head2toe": head2toe, "residual": residual, "attention": attention,
}  # fmt: skip


def test_eval_mode_is_the_modules_own() -> None:
    """`eval()` of this module scales its predictions by 100; the hook it overrides for validation does not."""
    made = CASES["unscales_in_eval"].make()

    results = probe("sharpness", num_samples=40, quantities=("sam",)).evaluate(made.module, made.train)

    inputs, targets = made.train.dataset.tensors
    expected = (made.module.net(inputs) - targets).square().mean()
    measured = results["sharpness/loss"]
    assert isinstance(measured, Scalar)
    assert measured.value == pytest.approx(float(expected.detach()), rel=1e-5)
