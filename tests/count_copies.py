"""Counts what probes hold of the device's memory, on a model of a billion parameters: `python -m tests.count_copies`.

A tensor on the meta device has a size and no memory. Under `FakeTensorMode` it can be copied to the CPU and back as
from any accelerator, so that whole events of such a model can be run and accounted for: meta is the device, and the CPU
is the host. There are no values, so whatever a probe reads of one is made up. All that is patched for it, and PyTorch's
own state, is best left to a process of its own.
"""

import contextlib
import gc
import json
import os
import warnings
from unittest import mock

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

import lightning_probes.callbacks.paths.shape as shape
from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Sharpness
from lightning_probes.functional.paths.interpolation import Rise
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.quiet import measuring
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.run.init_state import capture_state
from lightning_probes.probing.view import ModelView

WIDTH = 22_400  # two square layers of it have a billion parameters


class Net(nn.Sequential):
    def __init__(self, width, **how):
        hidden = [part for _ in range(2) for part in (nn.Linear(width, width, **how), nn.ReLU())]
        super().__init__(*hidden, nn.Linear(width, 10, **how))


def loss(module, batch):
    return F.mse_loss(module(batch[0]), batch[1])


def predict(module, batch):
    return module(batch[0]), batch[1]


PROBES = {
    "fisher": lambda **how: FisherTrace(predict_fn=predict, likelihood="gaussian", **how),
    "interpolation": lambda **how: InitInterpolation(loss_fn=loss, num_alphas=3, **how),
    "cka": lambda **how: LayerCKA(loss_fn=loss, data="train", **how),
    "sharpness": lambda **how: Sharpness(loss_fn=loss, **how),
}


class Meter(TorchDispatchMode):
    """Bytes of the storages that were made on a device since, and are alive."""

    def __init__(self, device="meta"):
        super().__init__()
        self.device = device
        self.peak = 0
        self._alive = {}

    @property
    def now(self):
        self._alive = {key: found for key, found in self._alive.items() if not found[0].expired()}
        return sum(size for _, size in self._alive.values())

    def add(self, tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:  # whose addresses are not used again as long as they are known here
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.device == "meta" and func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype is torch.bool or 1  # a number, or that something holds
        if self.device == "meta" and func is torch.ops.aten.equal.default:
            return True
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            self.add(tensor)
        return output


GENERATOR = torch.Generator


class OnCPU(type):
    def __call__(cls, device=None):
        return GENERATOR()

    def __instancecheck__(cls, value):
        return isinstance(value, GENERATOR)


class Generator(metaclass=OnCPU):
    """One of the CPU wherever it is wanted, since meta has none."""


def no_autocast(*args, **kwargs):
    return contextlib.nullcontext()


def always(*args, **kwargs):
    return True


def itself(self, memo):
    return self


def no_rise(losses):
    return Rise(0.0, 0, 1)


@contextlib.contextmanager
def made_up():
    """What can't be had of tensors without values.

    All copies of a tensor share its mode. Else a deep copy, as metrics make of their initial state, takes along a copy
    of the mode with its weak references to storages, by address and without counting them, and each is freed twice.
    """
    with (
        mock.patch.object(FakeTensorMode, "__deepcopy__", itself, create=True),
        mock.patch.object(torch, "autocast", no_autocast),
        mock.patch.object(torch, "allclose", always),
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(torch.Tensor, "numpy", lambda self: np.ones(self.shape)),
        mock.patch.object(torch.Tensor, "tolist", lambda self: np.ones(self.shape).tolist()),
        mock.patch.object(shape, "max_rise", no_rise),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def initial_state(dtype):
    """Where the captured state of a model is, in what dtype, and how many bytes it adds on the device."""
    net = Net(WIDTH, device="meta", dtype=dtype)
    with Meter() as meter:
        state = capture_state(net)
        added = meter.now - sum(parameter.nbytes for parameter in net.parameters())
    kinds = {f"{tensor.dtype} on {tensor.device.type}" for tensor in state.values()}
    return {"parameters": sum(p.numel() for p in net.parameters()), "kinds": sorted(kinds), "added": added}


def event(name):
    """Bytes over those of the model, in units of it: at the peak of the dry run and of an event, and after each."""
    net, samples = Net(WIDTH, device="meta"), TensorDataset(torch.zeros(8, WIDTH), torch.zeros(8, 10))
    probe, data = PROBES[name](), {"train": Drawing(8, 4).draw(DataLoader(samples, batch_size=4))}
    found = {}
    with Meter() as meter, measuring():
        for parameter in net.parameters():
            meter.add(parameter)
        model = meter.now
        view = ModelView(Twin(net), probe.objective, data, 0, capture_state(net))
        for what, run in (("dry run", probe.prepare), ("event", lambda view: list(probe.measure(view)))):
            meter.peak = model
            run(view)
            gc.collect()
            found[what] = {"peak": meter.peak / model - 1, "left": meter.now - model}
    return found


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
            if issubclass(type(value), torch.Tensor) and value.layout == torch.strided:  # a dead proxy has no class
                storage = value.untyped_storage()
                found[storage._cdata] = storage.nbytes()
        for tensor in self.spared():
            found.pop(tensor.untyped_storage()._cdata, None)
        self.bytes = sum(found.values())


def on_the_host(probes):
    """What probes keep on the CPU wherever the model is: initial state, samples, initial layers, last eigenvectors."""
    for probe in probes:
        yield from (probe.progress.log.initial or {}).values()
        yield from (value for value in probe.carried.values() if isinstance(value, torch.Tensor))
        yield from (getattr(layers, "features", layers) for layers in getattr(probe, "_initial", (None, []))[1])
        for batch in probe.runner.data["train"].batches:
            yield from batch.content


def bytes_between_events(width, probes, spared=lambda: ()):
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


def between_events(width):
    """Bytes that a fit with all probes holds on the device in the middle of the training, over one without."""
    probes = [make(schedule=EveryNSteps(3), num_samples=16) for make in PROBES.values()]
    without = bytes_between_events(width, [])
    return bytes_between_events(width, probes, lambda: on_the_host(probes)) - without


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    between = {width: between_events(width) for width in (64, 512)}
    with made_up():
        counts = {name: event(name) for name in ("fisher", "interpolation", "cka")}
        counts |= {str(dtype): initial_state(dtype) for dtype in (torch.float32, torch.bfloat16)}
    counts["between events"] = between
    print(json.dumps(counts), flush=True)
    os._exit(0)  # what is left of storages without memory is not worth taking down
