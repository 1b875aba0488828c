"""What probes hold on the device: at most in an event, and between events."""

import copy
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import lightning_probes.callbacks.curvature.hessian as hessian
from lightning_probes.functional.curvature.lanczos import lanczos_top_eigenpair
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.quiet import measuring
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.view import ModelView
from tests.count_copies import PROBES, Meter, Net, made_up

ROOT = Path(__file__).parents[3]

# Copies of the parameters at the peak of the dry run and of an event. These are what the pages of the probes say.
COPIES = {"fisher": (3.1, 0.1), "interpolation": (1.1, 4.1), "cka": (1.1, 1.1)}
OF_SHARPNESS = {("lambda_max", "sam"): 41.1, ("lambda_max", "trace"): 48.2, ("trace",): 24.2}


@pytest.fixture(scope="module")
def counted():
    """On a model of a billion parameters."""
    ran = subprocess.run([sys.executable, "-m", "tests.count_copies"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_copies_of_fake_tensors_share_the_mode_that_holds_uncounted_references():
    with made_up():
        number = torch.zeros((), device="meta")
        assert copy.deepcopy({"of a metric": [number]})["of a metric"][0].fake_mode is number.fake_mode


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_the_initial_state_of_a_billion_parameters_is_on_the_cpu_in_their_dtype(counted, dtype):
    found = counted[dtype]
    assert found["parameters"] > 1e9
    assert found["kinds"] == [f"{dtype} on cpu"]
    assert found["added"] == 0


@pytest.mark.parametrize("name", COPIES)
def test_events_of_a_billion_parameters_leave_nothing_on_the_device(counted, name):
    found = counted[name]
    assert (found["dry run"]["left"], found["event"]["left"]) == (0, 0)
    for what, most in zip(("dry run", "event"), COPIES[name], strict=True):
        assert most - 0.2 < found[what]["peak"] < most


@pytest.mark.parametrize(("quantities", "most"), OF_SHARPNESS.items())
def test_thirty_products_take_no_more_copies_than_the_page_says_and_leave_none(monkeypatch, quantities, most):
    """Of a model that is there: without values there is no eigenvalue. Nothing but parameters is of their size."""
    monkeypatch.setattr(
        hessian, "lanczos_top_eigenpair", lambda *args, **how: lanczos_top_eigenpair(*args, **{**how, "tolerance": 0})
    )
    net, samples = Net(512), TensorDataset(torch.randn(8, 512), torch.randn(8, 10))
    probe, data = (
        PROBES["sharpness"](quantities=quantities),
        {"train": Drawing(8, 4).draw(DataLoader(samples, batch_size=4))},
    )
    model = sum(parameter.nbytes for parameter in net.parameters())
    with measuring():
        view = ModelView(Twin(net), probe.objective, data)
        probe.prepare(view)
        list(probe.measure(view))  # the second time there is a last eigenvector, as mostly
        gc.collect()
        with Meter("cpu") as meter:
            for parameter in net.parameters():
                meter.add(parameter)
            list(probe.measure(view))
            gc.collect()
            held = sum(vector.nbytes for vector in probe.carried.values())
            assert meter.now - model - held < 0.01 * model
    assert most - 2 < meter.peak / model - 1 < most


@pytest.mark.parametrize("width", ["64", "512"])
def test_between_events_probes_hold_nothing_of_the_size_of_the_model_on_its_device(counted, width):
    assert counted["between events"][width] < 8192  # bytes, of any model: random states, mostly
