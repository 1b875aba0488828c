"""What a cell works on: a model that was trained for a few steps, and the samples that every tool is given."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.models import MODELS, cross_entropy, samples_for
from lightning_probes.probing.data.drawing import Drawing, ProbeSet

SIZES = {  # samples, and how many in a pass
    "mlp": (512, 128),
    "conv1d": (512, 128),
    "resnet20": (256, 64),
    "resnet18": (128, 64),
    "vit": (256, 64),
    "gpt2": (128, 32),
    "lstm": (256, 64),
}
SIZES_OF_MANY_PASSES = {**SIZES, "resnet20": (64, 32), "resnet18": (16, 8), "vit": (64, 32), "gpt2": (64, 32)}
TRAINING_STEPS = {**dict.fromkeys(SIZES, 60), "resnet18": 15, "resnet20": 40}


class Lit(L.LightningModule):
    """The user's module."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


@dataclass
class Work:
    """A trained model with probe samples.

    Attributes:
        name: Of the model.
        module: The user's module, trained.
        init_state: Its state before training.
        samples: How many.
        micro_batch_size: How many in a pass.
        extras: What a tool tells beside its value, e.g. how many matrix-vector products it took.
        directory: Of this run of the benchmark.
    """

    name: str
    module: Lit
    init_state: dict[str, Tensor]
    samples: int
    micro_batch_size: int
    extras: dict[str, Any] = field(default_factory=dict)
    directory: Path = field(default_factory=Path)

    @cached_property
    def loader(self) -> DataLoader[Any]:
        inputs, targets = samples_for(self.name, self.samples, torch.Generator().manual_seed(7))
        return DataLoader(TensorDataset(inputs, targets), batch_size=self.micro_batch_size)

    @cached_property
    def probe_set(self) -> ProbeSet:
        return Drawing(self.samples, self.micro_batch_size).draw(self.loader)

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The same micro-batches as the probes', for everybody."""
        device = next(self.module.parameters()).device
        contents = [batch.content for batch in self.probe_set.batches]
        return [(inputs.to(device), targets.to(device)) for inputs, targets in contents]

    @cached_property
    def net(self) -> nn.Module:
        """A copy of the network in eval mode, for plain passes and for other tools."""
        return copy.deepcopy(self.module.net).eval()

    @cached_property
    def net_at_init(self) -> nn.Module:
        """The same before training."""
        net = copy.deepcopy(self.module.net).eval()
        net.load_state_dict({key.removeprefix("net."): value for key, value in self.init_state.items()})
        return net

    @cached_property
    def other(self) -> Work:
        """Another run of the same model: from another initialisation, on other samples."""
        return load(self.name, self.directory, seed=1)


def load(name: str, directory: Path, many_passes: bool = False, scale: float = 1.0, seed: int = 0) -> Work:
    """Take a trained model from a directory, or train it and put it there.

    Args:
        name: Of the model.
        directory: Kept for one run of the benchmark.
        many_passes: Take fewer samples, for tasks of many passes.
        scale: Factor on the number of samples.
        seed: Of the initialisation and of the samples for training.
    """
    samples, size = (SIZES_OF_MANY_PASSES if many_passes else SIZES)[name]
    samples, size = max(8, int(samples * scale)), max(4, int(size * scale))
    torch.manual_seed(seed)
    module = Lit(MODELS[name]())
    init_state = {key: value.clone() for key, value in module.state_dict().items()}
    path = directory / f"{name}-{seed}.pt"
    if path.exists():
        module.load_state_dict(torch.load(path))
    else:
        _train(module, name, seed)
        partial_path = directory / f"{name}-{seed}.{os.getpid()}"
        torch.save(module.state_dict(), partial_path)
        partial_path.replace(path)
    module.train()
    placed = module.cuda() if torch.cuda.is_available() else module
    return Work(name, placed, init_state, samples, size, directory=directory)


def _train(module: Lit, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(3 + seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(TRAINING_STEPS[name]):
        loss = module.training_step(samples_for(name, 32, generator), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention that has a second derivative; what our probes see to themselves, given to every other tool too."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def forward_pass(work: Work) -> Callable[[], None]:
    """One forward pass over the samples, without gradients."""

    @torch.no_grad()
    def run() -> None:
        for inputs, targets in work.batches:
            cross_entropy(work.net(inputs), targets)

    return run


def backward_pass(work: Work) -> Callable[[], None]:
    """One forward and backward pass over the samples, to gradients of all parameters."""

    def run() -> None:
        for inputs, targets in work.batches:
            cross_entropy(work.net(inputs), targets).backward()
            work.net.zero_grad(set_to_none=True)

    return run


def hessian_product(work: Work) -> Callable[[], None]:
    """One Hessian-vector product over the samples, by double backward."""
    params = list(work.net.parameters())
    vectors = [torch.randn_like(param) for param in params]

    def run() -> None:
        with twice_differentiable():
            for inputs, targets in work.batches:
                loss = cross_entropy(work.net(inputs), targets)
                grads = torch.autograd.grad(loss, params, create_graph=True)
                torch.autograd.grad(grads, params, vectors)

    return run
