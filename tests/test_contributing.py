"""A reader of CONTRIBUTING who saves its files has three callbacks that measure what they say, and pass the tester."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps
from lightning_probes.testing.zoo import CASES
from tests.tester import fit

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SAVED = dict(re.findall(r"[Ss]ave this as\s+`(\w+\.py)`.*?```python\n(.*?)```", TEXT, flags=re.DOTALL))
CALLBACKS = ("noise_scale.py", "zero_outputs.py", "gradient_spikes.py")


@pytest.fixture(scope="module", autouse=True)
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The files of a reader, where Python and the processes that it starts find them."""
    folder = tmp_path_factory.mktemp("reader")
    for name, code in SAVED.items():
        (folder / name).write_text(code)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for name in SAVED:
        sys.modules.pop(name.removesuffix(".py"), None)


def of_reader(name: str) -> Any:
    return importlib.import_module(name)


def test_there_are_three_callbacks_and_a_test() -> None:
    assert tuple(SAVED) == (*CALLBACKS, "test_mine.py")


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_has_under_60_lines_and_imports_the_extension_face_alone(name: str) -> None:
    assert len(SAVED[name].splitlines()) < 60
    nodes = ast.walk(ast.parse(SAVED[name]))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert {module for module in modules if module.startswith("lightning")} == {
        "lightning_probes", "lightning_probes.probing",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["test_gradient_noise_scale", "test_zero_outputs", "test_gradient_spikes"])
def test_a_callback_passes_the_readers_own_test(name: str) -> None:
    getattr(of_reader("test_mine"), name)()


def per_sample_gradients(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rows = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    return torch.stack(rows).double()


def test_the_noise_scale_is_that_of_explicit_gradients() -> None:
    made = CASES["list_batch"].make()
    x, y = made.train.dataset.tensors
    probe = of_reader("noise_scale").GradientNoiseScale(micro_batch_size=1, num_samples=40)
    value = probe.evaluate(made.module, DataLoader(TensorDataset(x, y), 8))["noise/noise_scale"].value

    gradients = per_sample_gradients(made.module, x, y)
    trace = gradients.var(0).sum()
    assert value == pytest.approx(float(trace / (gradients.mean(0).square().sum() - trace / 40)), rel=1e-4)


def test_zeros_are_counted_over_samples_and_units_and_a_dead_layer_raises_the_flag() -> None:
    made = CASES["list_batch"].make()
    relu = nn.ReLU()
    made.module.net = nn.Sequential(nn.Linear(4, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3))
    x, _ = made.train.dataset.tensors
    probe = of_reader("zero_outputs").ZeroOutputs(layers=["net.1", "net.1#2"], num_samples=40, micro_batch_size=8)

    results = probe.evaluate(made.module, made.train)
    first = relu(made.module.net[0](x))
    shares = [float((out == 0).double().mean()) for out in (first, relu(made.module.net[2](first)))]
    assert [results["zeros/layer/net/1"].value, results["zeros/layer/net/1#2"].value] == pytest.approx(shares)
    assert results["zeros/mean"].value == pytest.approx(sum(shares) / 2)
    assert not results["zeros/flag/dead"].raised

    with torch.no_grad():
        made.module.net[2].bias.fill_(-100.0)
    assert probe.evaluate(made.module, made.train)["zeros/flag/dead"].raised


def test_a_spike_is_a_gradient_far_above_the_running_mean() -> None:
    class Spiky(type(CASES["list_batch"].make().module)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * (100.0 if self.global_step == 3 else 1.0)

    def make() -> Any:
        made = CASES["list_batch"].make()
        made.module.__class__ = Spiky
        return made

    norms: list[float] = []

    class Reads(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            norms.append(float(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm()))

    monitor = of_reader("gradient_spikes").GradientSpikes(schedule=EveryNSteps(1))
    with pytest.warns(UserWarning, match="gradient/flag/spike: the gradient has norm"):
        fit(make, [Reads(), monitor])
    assert [row["gradient/flag/spike"] for row in monitor.history] == [0, 0, 0, 1, 0]
    assert [row["gradient/norm"] for row in monitor.history] == pytest.approx(norms, rel=1e-5)
