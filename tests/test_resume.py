"""A run that goes on from a checkpoint goes on measuring where it stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_probes import AtCheckpoints, AtFitEnd, LogSpacedSteps, Probe
from tests.tester import PROBES, assert_same, fingerprint, fit, probe
from tests.zoo import CASES, Fit

MAKE = CASES["list_batch"].make
WHEN = [LogSpacedSteps(3), AtCheckpoints(), AtFitEnd()]


def four(initial: Any = None) -> list[Probe]:
    """The four probes; with the initialisation for those that compare with it."""
    start = {"interpolation": {"init_state": initial}, "cka": {"init_state": initial}}
    return [probe(kind, num_samples=16, schedule=WHEN, **start.get(kind, {})) for kind in PROBES]


def initialisation() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in fit(MAKE, max_steps=0).module.state_dict().items()}


def begin(directory: Path, probes: list[Probe]) -> Path:
    """Stop in the middle of the second of three epochs."""
    saves = ModelCheckpoint(directory, filename="half", every_n_train_steps=7, save_top_k=-1)
    fit(MAKE, [*probes, saves], enable_checkpointing=True, max_epochs=3, max_steps=7)
    return directory / "half.ckpt"


def go_on(checkpoint: Path, probes: list[Probe]) -> Any:
    made = MAKE()
    run = fit(lambda: Fit(made.module, made.train, made.val), probes, max_epochs=3, ckpt_path=checkpoint)
    assert run.trainer.global_step == 15
    return run


def test_history_goes_on_at_the_steps_of_an_unbroken_run(tmp_path: Path) -> None:
    first, second, unbroken = four(), four(initialisation()), four()
    checkpoint = begin(tmp_path, first)

    go_on(checkpoint, second)
    fit(MAKE, unbroken, max_epochs=3)

    for before, after, expected in zip(first, second, unbroken, strict=True):
        kept = [entry for entry in before.history if entry["step"] < 7]
        assert after.history[: len(kept)] == kept
        steps = [[entry["step"] for entry in each.history if entry["step"] != 7] for each in (after, expected)]
        assert steps[0] == steps[1]  # at step 7 alone was there a checkpoint


def test_resumed_with_the_initialisation_the_line_starts_there(tmp_path: Path) -> None:
    initial = initialisation()
    checkpoint = begin(tmp_path, four())
    resumed = probe("interpolation", init_state=initial, schedule=AtFitEnd())

    run = go_on(checkpoint, [resumed])

    parameters = dict(run.module.named_parameters())
    moved = torch.cat([(p.detach() - initial[name]).flatten() for name, p in parameters.items()]).norm()
    assert resumed.history[-1]["interpolation/distance"] == pytest.approx(float(moved), rel=1e-5)


def test_resumed_without_the_initialisation_says_what_to_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = begin(tmp_path, four())
    resumed = four()

    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        go_on(checkpoint, resumed)

    said = [record.message for record in caplog.records if "init_state=" in record.message]
    assert len(said) == 2
    assert {message.split()[0] for message in said} == {"InitInterpolation", "LayerCKA"}
    fisher, interpolation, cka, sharpness = resumed
    assert "fisher/trace" in fisher.history[-1]
    assert "sharpness/lambda_max" in sharpness.history[-1]
    assert "cka/null_p95" in cka.history[-1]
    assert "cka/to_init_mean" not in cka.history[-1]
    assert interpolation.results == {}  # and its history is the one it took up


def test_resumed_training_is_the_same_with_and_without_probes(tmp_path: Path) -> None:
    checkpoint = begin(tmp_path, [])

    with_probes, without = go_on(checkpoint, four()), go_on(checkpoint, [])

    assert_same(fingerprint(with_probes), fingerprint(without))


def test_checkpoint_made_with_probes_loads_without_them(tmp_path: Path) -> None:
    checkpoint = begin(tmp_path, four())

    go_on(checkpoint, [])
    assert "fisher" in torch.load(checkpoint, weights_only=True)["callbacks"]
