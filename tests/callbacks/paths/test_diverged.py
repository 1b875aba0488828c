"""A run whose weights are no longer finite: probes of paths measure on, raise their flag, and so does a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_probes import AtFitEnd, EveryNSteps, LossPlane, Probe, Surface
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised, cnn, mlp
from tests.tester import fit, probe

LAST = 4  # the last step with finite weights


class Diverges(Supervised):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step >= LAST:  # after the measurement of that step
            with torch.no_grad():
                self.net[0].weight.fill_(float("nan"))


def trained(each: Probe, directory: Path, epochs: int, resume: bool = False, convolutions: bool = False) -> None:
    def make() -> Fit:
        net, shape = (cnn(), (1, 8, 8)) if convolutions else (mlp(), (4,))
        return Fit(Diverges(net), loader(labelled(*shape)))

    saves = ModelCheckpoint(directory, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True)
    last = directory / "last.ckpt" if resume else None
    fit(make, [each, saves], directory, enable_checkpointing=True, max_epochs=epochs, ckpt_path=last)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "line": ("connectivity", {}),
    "units matched by weights": ("connectivity", {"align": "weights"}),
    "units matched by activations": ("connectivity", {"align": "activations", "repair": True, "cross": True}),
    "bezier": ("connectivity", {"path": "bezier", "path_steps": 8, "schedule": AtFitEnd()}),
    "string": ("connectivity", {"path": "string", "path_steps": 8, "schedule": AtFitEnd()}),
    "random plane": ("plane", {}),
    "plane of the trajectory": ("plane", {"directions": "trajectory"}),
    "halves": ("dropout", {"per_layer": True}),
}


@pytest.mark.filterwarnings("ignore:.*not finite", "ignore:.*fewer than two")
@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("what", KINDS)
def test_a_resumed_run_measures_on_and_raises_the_flag(what: str, convolutions: bool, tmp_path: Path) -> None:
    kind, arguments = KINDS[what]
    begun, resumed = (probe(kind, **{"schedule": EveryNSteps(1), **arguments}) for _ in range(2))
    trained(begun, tmp_path, 1, convolutions=convolutions)
    trained(resumed, tmp_path, 2, resume=True, convolutions=convolutions)

    flags = {int(row["step"]): row[f"{kind}/flag/nonfinite"] for row in resumed.history}
    if isinstance(arguments.get("schedule"), AtFitEnd):
        assert flags == {10: 1}
    else:
        first = 3 if what == "plane of the trajectory" else 0  # which needs two checkpoints
        assert flags == {step: int(step > LAST) for step in range(first, 10)}


def test_checkpoints_that_are_not_finite_are_left_out_of_a_plane_which_is_reported(tmp_path: Path) -> None:
    trained(probe("plane", resolution=3), tmp_path, 2)
    sound = [tmp_path / f"step={step}.ckpt" for step in range(1, LAST)]
    module = Supervised(mlp())
    module.load_state_dict(torch.load(tmp_path / f"step={LAST}.ckpt", weights_only=True)["state_dict"])

    def surface(checkpoints: Any) -> Surface:
        plane = LossPlane(directions="trajectory", checkpoints=checkpoints, resolution=3, num_samples=24)
        found = plane.evaluate(module, loader(labelled(4), shuffle=False))["plane/loss"]
        assert isinstance(found, Surface)
        return found

    with pytest.warns(UserWarning, match=r"are left out of the plane: step 5, step 6, .*step 10$"):
        found = surface(tmp_path)
    assert found.path_labels == ("step 1", "step 2", "step 3", "now")
    np.testing.assert_array_equal(found.values, surface(sound).values)


def test_too_few_finite_checkpoints_are_refused_by_their_number(tmp_path: Path) -> None:
    good = mlp().state_dict()
    bad = {name: torch.full_like(tensor, float("inf")) for name, tensor in good.items()}
    module = Supervised(mlp())
    states = [{f"net.{name}": tensor for name, tensor in state.items()} for state in (good, bad)]
    plane = LossPlane(directions="checkpoints", checkpoints=states, resolution=3)
    with (
        pytest.warns(UserWarning, match="left out of the plane: checkpoint 2"),
        pytest.raises(ValueError, match="checkpoints has 1 different states, and the plane needs 2 or 3"),
    ):
        plane.evaluate(module, labelled(4))
