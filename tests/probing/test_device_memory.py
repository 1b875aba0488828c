"""What probes hold on the device: at most in an event, and between events."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import lightning_probes.callbacks.sharpness as sharpness
from lightning_probes import EveryNSteps
from lightning_probes.functional.lanczos import lanczos_top_eigenpair
from lightning_probes.probing.data import Drawing
from lightning_probes.probing.session import measuring
from lightning_probes.probing.twin import Twin
from lightning_probes.probing.view import ModelView
from tests.count_copies import PROBES, Meter, Net, loss

ROOT = Path(__file__).parent.parent.parent

# Copies of the parameters at the peak of the dry run and of an event. These are what the pages of the probes say.
COPIES = {"fisher": (3.1, 0.1), "interpolation": (1.1, 4.1), "cka": (1.1, 1.1)}
OF_SHARPNESS = 41.1


@pytest.fixture(scope="module")
def counted():
    """On a model of a billion parameters."""
    ran = subprocess.run([sys.executable, "-m", "tests.count_copies"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


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


def test_thirty_products_take_no_more_copies_than_the_page_says_and_leave_none(monkeypatch):
    """Of a model that is there: without values there is no eigenvalue. Nothing but parameters is of their size."""
    monkeypatch.setattr(
        sharpness, "lanczos_top_eigenpair", lambda *args, **_: lanczos_top_eigenpair(*args, tolerance=0)
    )
    net, samples = Net(512), TensorDataset(torch.randn(8, 512), torch.randn(8, 10))
    probe, data = PROBES["sharpness"](), {"train": Drawing(8, 4).draw(DataLoader(samples, batch_size=4))}
    model = sum(parameter.nbytes for parameter in net.parameters())
    with measuring():
        view = ModelView(Twin(net), probe.objective, data)
        probe._dry_run(view)
        list(probe.measure(view))  # the second time there is a last eigenvector, as mostly
        gc.collect()
        with Meter("cpu") as meter:
            for parameter in net.parameters():
                meter.add(parameter)
            list(probe.measure(view))
            gc.collect()
            held = sum(vector.nbytes for vector in probe._warm.values())
            assert meter.now - model - held < 0.01 * model
    assert OF_SHARPNESS - 2 < meter.peak / model - 1 < OF_SHARPNESS


class Module(L.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.net = Net(width)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return loss(self, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Count(L.Callback):
    """Bytes of all tensors that are alive in the middle of the training, but for those that `spared` gives."""

    def __init__(self, spared=lambda: ()):
        self.spared = spared

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step != 7:
            return
        gc.collect()
        found = {}
        for value in gc.get_objects():
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                found[storage._cdata] = storage.nbytes()
        for tensor in self.spared():
            found.pop(tensor.untyped_storage()._cdata, None)
        self.bytes = sum(found.values())


def on_the_host(probes):
    """What probes keep on the CPU wherever the model is: initial state, samples, Gram matrices, last eigenvectors."""
    for probe in probes:
        yield from (probe._log.initial or {}).values()
        yield from probe._warm.values()
        yield from getattr(probe, "_initial_grams", (None, []))[1]
        for batch in probe._fit.data["train"].batches:
            yield from batch.content


def between_events(width, probes, spared=lambda: ()):
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(64, width), torch.randn(64, 10)), batch_size=8)
    count = Count(spared)
    trainer = L.Trainer(
        max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*probes, count],
    )  # fmt: skip
    trainer.fit(Module(width), loader)
    assert all(len(probe.history) == 3 for probe in probes)
    return count.bytes


@pytest.mark.parametrize("width", [64, 512])
def test_between_events_probes_hold_nothing_of_the_size_of_the_model_on_its_device(width):
    probes = [make(schedule=EveryNSteps(3), num_samples=16) for make in PROBES.values()]
    without = between_events(width, [])
    held = between_events(width, probes, lambda: on_the_host(probes)) - without
    assert held < 8192  # of any model: random states, mostly
