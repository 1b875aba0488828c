"""Training with probes ends in every bit as training without them, also when a probe raises.

The module below does what user modules do: dropout, BatchNorm, a torchmetrics member, attributes, counters and lists
that `training_step` changes, hooks, a frozen part, a learning rate schedule; its loader has a generator of its own, and
gradients are accumulated over two batches. `tests.tester.fingerprint` says what is compared.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_probes import AtFitEnd, EveryNEpochs, EveryNSteps, Probe
from lightning_probes.probing.data import deferred
from lightning_probes.probing.isolation.seeding import isolated_rng
from lightning_probes.results import Result, Scalar
from lightning_probes.testing.numbers import numbers_of_history
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import Mapped, augmented, labelled
from tests.tester import PROBES, Flat, Run, assert_same, fingerprint, fit, probe

WHEN = [EveryNSteps(2, stop=2), EveryNEpochs(1), AtFitEnd()]


class Eventful(L.LightningModule):
    """Everything about it changes while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.2),
            nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(),
            nn.Linear(6, 3),
        )  # fmt: skip
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval().requires_grad_(False)
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.mean_loss = MeanMetric()
        self.register_buffer("running", torch.zeros(3), persistent=False)
        self.counts = {"training": 0, "hook": 0, "backward": 0}
        self.losses: list[float] = []
        self.last: Tensor | None = None
        self.best = float("inf")
        self.generator = torch.Generator().manual_seed(5)
        self.net[0].register_forward_hook(self.count_forward)
        self.net[6].register_full_backward_hook(self.count_backward)
        self.net[0].weight.register_hook(self.scale_gradient)

    def count_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.counts["hook"] += 1

    def count_backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> None:
        self.counts["backward"] += 1

    def scale_gradient(self, gradient: Tensor) -> Tensor:
        self.counts["backward"] += 1
        return gradient * 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.frozen(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x + 0.01 * torch.randn(x.shape, generator=self.generator))
        loss = F.cross_entropy(logits, y)
        self.counts["training"] += 1
        self.losses.append(loss.item())
        self.last = logits
        self.best = min(self.best, loss.item())
        self.running.mul_(0.9).add_(logits.detach().mean(0))
        self.accuracy(logits, y)
        self.mean_loss(loss)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"mean_loss": self.mean_loss, "noise": float(np.random.rand()) + random.random()}, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("epoch_losses", float(len(self.losses)))
        self.losses.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7), "interval": "step"}]


def eventful() -> Fit:
    data = Mapped(labelled(4), augmented)
    train = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
    return Fit(Eventful(), train, DataLoader(labelled(4, seed=1), batch_size=8))


def train(probes: Iterable[L.Callback], directory: Path, make: Callable[[], Fit] = eventful, **arguments: Any) -> Run:
    """Two epochs of five batches, two to a step, with the callbacks and the logger of an ordinary script."""
    directory.mkdir(exist_ok=True)
    own = [
        ModelCheckpoint(directory / "saved", monitor="val_loss", save_top_k=2, save_last=True),
        EarlyStopping("val_loss", patience=10),
    ]
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "enable_checkpointing": True}
    logger = CSVLogger(directory, name="", version="")
    return fit(make, [*probes, *own], directory, logger=logger, **{**settings, **arguments})


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Flat:
    return fingerprint(train([], tmp_path_factory.mktemp("untouched")))


def probes(*names: str, **arguments: Any) -> list[Probe]:
    return [probe(name, schedule=WHEN, num_samples=16, **arguments) for name in names]


@pytest.mark.parametrize("name", PROBES)
def test_one_probe_leaves_training_as_it_was(name: str, untouched: Flat, tmp_path: Path) -> None:
    (alone,) = probes(name)

    run = train([alone], tmp_path)

    assert [entry["step"] for entry in alone.history] == [0, 2, 3, 6]
    assert_same(fingerprint(run), untouched)


def test_all_probes_together_leave_training_as_it_was(untouched: Flat, tmp_path: Path) -> None:
    every = probes(*PROBES)

    run = train(every, tmp_path)

    assert all(each.history for each in every)
    assert_same(fingerprint(run), untouched)


class Restless(Dataset[Any]):
    """Draws from a generator of its own and from those of the process, counts, remembers, and changes what it holds."""

    def __init__(self) -> None:
        self.inputs, self.labels = labelled(4).tensors
        self.generator, self.reads, self.log = torch.Generator().manual_seed(2), 0, deque[int](maxlen=5)
        self.worst = np.zeros(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        self.log.append(index)
        noise = torch.rand(4, generator=self.generator) + torch.rand(4) * random.random() + np.random.rand()
        self.worst[index] = max(self.worst[index], float(noise.max()))
        self.inputs[index] += 0.01 * noise
        return self.inputs[index] + 0.001 * self.reads, self.labels[index]


def restless() -> Fit:
    train = DataLoader(Restless(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
    return Fit(Eventful(), train, DataLoader(Restless(), batch_size=8))


def test_probe_data_that_is_read_during_training_leaves_training_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the probes measure what they measure on data that is kept in memory."""
    runs, measured = [], []
    for number, largest in enumerate((None, 0, 2**29)):
        monkeypatch.setattr(deferred, "LARGEST_KEPT", largest)
        every = [] if largest is None else probes(*PROBES)
        runs.append(fingerprint(train(every, tmp_path / str(number), make=restless)))
        measured.append([numbers_of_history(each) for each in every])
        for each in every:
            assert any("train data" in said and "reads it again" in said for said in each.say.said) == (largest == 0)

    assert_same(runs[1], runs[0])
    assert measured[1] == measured[2]
    assert all(measured[1])


class Breaks(Probe):
    """Fails at a step of its choosing, in the middle of what probes do."""

    def __init__(self, at: int, on_error: Any = "warn") -> None:
        super().__init__(
            name="breaks", schedule=EveryNSteps(1), data="train", num_samples=8, micro_batch_size=8, on_error=on_error
        )
        self.at = at

    def measure(self, view: Any) -> Iterable[Result]:
        for batch in view.batches():
            view.loss(view.params, batch)
            if view.step >= self.at:
                torch.rand(3)
                raise RuntimeError("out of luck")
        yield Scalar("number", 1.0)


@pytest.mark.parametrize("at", [0, 2])
def test_probe_that_raises_leaves_training_as_it_was(at: int, untouched: Flat, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="out of luck"):
        run = train([Breaks(at)], tmp_path)

    assert_same(fingerprint(run), untouched)


def test_probe_that_stops_the_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Compared with a run that a probe which does nothing else stops at the same moment."""

    class Stops(Breaks):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("out of luck")

    expected = fingerprint(train([Stops(2)], tmp_path / "user", catch=RuntimeError))
    found = fingerprint(train([Breaks(2, on_error="raise")], tmp_path / "probe", catch=RuntimeError))

    assert found["trainer.0"] == "2"
    assert_same(found, expected)


# -- the test can fail -------------------------------------------------------------------------------------------------


class Leaky(Breaks):
    """A probe that does one thing it must not do, at the third batch."""

    def __init__(self, leak: Callable[[L.Trainer, Eventful, Any], Any]) -> None:
        super().__init__(0)
        self.leak = leak

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.leak(trainer, pl_module, batch)


def replay(trainer: L.Trainer, module: Eventful, batch: Any) -> Tensor:
    with isolated_rng():
        return module.training_step(batch, 0)


def write(trainer: L.Trainer, module: Eventful, batch: Any) -> None:
    with torch.no_grad():
        module.net[0].weight[0, 0].add_(1e-6)


def read_ahead(trainer: L.Trainer, module: Eventful, batch: Any) -> None:
    with isolated_rng():  # which does not know the loader's own generator
        next(iter(trainer.train_dataloader))


LEAKS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "draws from torch": lambda trainer, module, batch: torch.rand(1),
    "draws from numpy": lambda trainer, module, batch: np.random.rand(),
    "draws from python": lambda trainer, module, batch: random.random(),
    "draws from the module's generator": lambda trainer, module, batch: torch.rand(1, generator=module.generator),
    "replays the training step": replay,
    "leaves a gradient": lambda trainer, module, batch: replay(trainer, module, batch).backward(),
    "reads the loader": read_ahead,
    "writes to a weight": write,
    "writes to a buffer": lambda trainer, module, batch: module.running.add_(1e-6),
    "runs BatchNorm": lambda trainer, module, batch: module.net[:2](batch[0]),
    "appends to a list": lambda trainer, module, batch: module.losses.append(0.0),
    "updates a metric": lambda trainer, module, batch: module.mean_loss.update(0.0),
    "sets an attribute": lambda trainer, module, batch: setattr(module, "best", 0.0),
    "adds a hook": lambda trainer, module, batch: module.net[2].register_forward_hook(print_nothing),
    "removes a hook": lambda trainer, module, batch: module.net[0]._forward_hooks.clear(),
    "switches to eval": lambda trainer, module, batch: module.net[3].eval(),
    "thaws a frozen part": lambda trainer, module, batch: module.frozen.requires_grad_(True),
    "steps the schedule": lambda trainer, module, batch: trainer.lr_scheduler_configs[0].scheduler.step(),
    "changes the learning rate": lambda trainer, module, batch: trainer.optimizers[0].param_groups[0].update(lr=1e-3),
    "logs under a user's name": lambda trainer, module, batch: trainer.logger.log_metrics({"noise": 0.0}, step=1),
    "replaces a user's metric": lambda trainer, module, batch: trainer.callback_metrics.update(other=torch.zeros(())),
    "marks the Trainer": lambda trainer, module, batch: setattr(trainer, "probed", True),
    "turns off a kernel": lambda trainer, module, batch: torch.backends.cuda.enable_flash_sdp(False),
    "turns off cuDNN": lambda trainer, module, batch: setattr(torch.backends.cudnn, "enabled", False),
}


def print_nothing(*_: Any) -> None:
    pass


@pytest.fixture
def settings_restored() -> Iterator[None]:
    flash, cudnn = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.enabled
    yield
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cudnn.enabled = cudnn


@pytest.mark.usefixtures("settings_restored")
@pytest.mark.parametrize("leak", LEAKS)
def test_leaky_probe_is_caught(leak: str, untouched: Flat, tmp_path: Path) -> None:
    run = train([Leaky(LEAKS[leak])], tmp_path)

    with pytest.raises(AssertionError, match="training was disturbed"):
        assert_same(fingerprint(run), untouched)


def test_nothing_is_found_where_nothing_leaks(untouched: Flat, tmp_path: Path) -> None:
    assert_same(fingerprint(train([Leaky(lambda *_: None)], tmp_path)), untouched)
