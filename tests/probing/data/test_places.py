"""Every draw of a run begins at the place of the first one, also in a resumed run; where it can't, that is said."""

import itertools

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from lightning_probes import EveryNSteps, FisherTrace
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.data.places import alike, fingerprint, kept

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Placed:
    """Goes on where it stopped, and begins anew at its end."""

    def __init__(self, steps=8):
        self.at, self.steps = 0, steps

    def places(self):
        while self.at < self.steps:
            self.at += 1
            yield self.at - 1
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Loader(Placed):
    def __len__(self):
        return self.steps

    def __iter__(self):
        return ((X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]) for i in self.places())


class Order(Placed, Sampler):
    def __init__(self):
        super().__init__(64)

    def __len__(self):
        return 64

    def __iter__(self):
        return self.places()


class Own(DataLoader):
    """Goes on with the place of its sampler, so that Lightning saves it."""

    def __iter__(self):
        yield from super().__iter__()

    def state_dict(self):
        return self.sampler.state_dict()

    def load_state_dict(self, state):
        self.sampler.load_state_dict(state)


class Stream(Placed, IterableDataset):
    def __init__(self):
        super().__init__(64)

    def __iter__(self):
        return ((X[i], Y[i]) for i in self.places())


class Forgetful(IterableDataset):
    """A stream with a place that nobody can ask for."""

    def __init__(self):
        self.numbers = itertools.count()

    def __iter__(self):
        return ((X[i % 64], Y[i % 64]) for i in self.numbers)


LOADERS = {
    "a loader": Loader,
    "a sampler": lambda: DataLoader(TensorDataset(X, Y), 8, sampler=Order()),
    "a loader with its sampler's place": lambda: Own(TensorDataset(X, Y), 8, sampler=Order()),
    "a stream": lambda: DataLoader(Stream(), 8),
}


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)  # so that only the samples make a difference


def losses(directory, steps, make, resume=None, **arguments):
    L.seed_everything(0, verbose=False)
    probe = FisherTrace(schedule=EveryNSteps(1), num_samples=24, **arguments)
    L.Trainer(
        max_steps=steps, logger=False, default_root_dir=directory, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
        callbacks=[probe, ModelCheckpoint(directory, every_n_train_steps=1, save_last=True)],
    ).fit(Net(), make(), ckpt_path=resume)  # fmt: skip
    return [row["fisher/loss"] for row in probe.history], probe.say.said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("broken_at", [3, 7, 8])
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_resumed_run_measures_the_samples_of_the_run_so_far(make, broken_at, tmp_path):
    losses(tmp_path, broken_at, make)
    found, said = losses(tmp_path, 12, make, tmp_path / "last.ckpt")
    assert len(found) == 12
    assert found == pytest.approx([found[0]] * 12, rel=1e-6)
    assert not any("are not comparable" in line for line in said)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LOADERS["a stream"], lambda: DataLoader(TensorDataset(X + 1, Y), 8)),
        (LOADERS["a stream"], lambda: DataLoader(TensorDataset(X, Y), 8)),
    ],
    ids=["other data", "another order"],
)
def test_other_samples_than_those_of_the_run_so_far_are_said(before, after, tmp_path):
    losses(tmp_path, 3, before)
    _, said = losses(tmp_path, 5, after, tmp_path / "last.ckpt")
    assert sum("are not comparable" in line for line in said) == 1


@pytest.mark.filterwarnings("ignore")
def test_another_seed_is_said_too(tmp_path):
    def plain():
        return DataLoader(TensorDataset(X, Y), 8)

    losses(tmp_path, 3, plain)
    assert not any("comparable" in line for line in losses(tmp_path, 5, plain, tmp_path / "last.ckpt")[1])
    assert any("comparable" in line for line in losses(tmp_path, 7, plain, tmp_path / "last.ckpt", seed=1)[1])


@pytest.mark.parametrize("make", [*LOADERS.values(), lambda: DataLoader(Forgetful(), 8)], ids=[*LOADERS, "forgetful"])
def test_what_is_kept_stays_at_its_place_while_training_goes_on(make):
    loader = make()
    training = iter(loader)
    next(training), next(training)
    own, [place] = kept(loader)

    def drawn():
        return torch.cat([batch.content[0] for batch in Drawing(16, seed=1).draw(own).batches])

    first = drawn()
    next(training)
    assert torch.equal(drawn(), first)
    if place is not None:
        again, _ = kept(make(), [place])
        batches = Drawing(16, seed=1).draw(again).batches
        assert torch.equal(torch.cat([batch.content[0] for batch in batches]), first)


def test_a_position_that_weights_only_loading_refuses_is_not_kept():
    class Odd(Stream):
        def state_dict(self):
            return {"at": np.int64(self.at)}

    loader = DataLoader(Odd(), 8)
    next(iter(loader))
    own, [place] = kept(loader)
    assert own.dataset.at == loader.dataset.at == 8
    assert place is None


def test_state_dict_is_not_called_if_that_would_start_an_epoch():
    class Lazy(Loader):
        _iterator = None

        def state_dict(self):
            raise AssertionError("begins an epoch")

    assert kept(Lazy())[1] == [None]


def test_a_batch_is_known_again_up_to_rounding():
    batch = {"x": X, "y": [Y, "text"]}
    rounded = {"x": X * (1 + 1e-6), "y": [Y, "other"]}
    assert alike(fingerprint(batch), fingerprint(rounded))
    for other in (X.flip(0), X[1:], X + 0.1, -X):
        assert not alike(fingerprint(batch), fingerprint({"x": other, "y": [Y, "text"]}))
