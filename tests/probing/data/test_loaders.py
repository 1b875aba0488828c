"""Whatever gives the batches of training gives those of a probe."""

import itertools
import threading

import lightning
import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lightning_probes import EveryNSteps, InitInterpolation, LayerCKA, Sharpness
from lightning_probes.probing.data.drawing import Drawing
from tests.probing.data.test_drawing import N, Numbers, Stream, contents, draw, samples


class Twice(DataLoader):
    """Gives twice what its dataset gives."""

    def __iter__(self):
        return (2 * batch for batch in super().__iter__())


class Negative(DataLoader):
    """Gives something else by its iterator, as PyTorch Geometric's loaders do."""

    def _get_iterator(self):
        return iter([-batch for batch in super()._get_iterator()])


@pytest.mark.parametrize(("kind", "factor"), [(Twice, 2), (Negative, -1)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_is_read_through_its_own_iter(kind, factor, workers):
    loader = kind(
        Numbers(), batch_size=8, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(1)
    )
    before = loader.generator.get_state()
    probe_set = draw(loader, num_samples=99)
    assert samples(probe_set) == sorted(factor * i for i in range(N))
    assert probe_set.sizes == [8] * 5
    assert torch.equal(loader.generator.get_state(), before)
    torch.rand(1, generator=loader.generator)
    assert torch.equal(torch.cat(contents(draw(loader, num_samples=99))), torch.cat(contents(probe_set)))


def test_a_loader_of_its_own_kind_whose_workers_run_is_left_alone():
    loader = Twice(Numbers(), batch_size=8, num_workers=1, persistent_workers=True)
    running = iter(loader)
    next(running)
    under_way = loader._iterator
    assert samples(draw(loader, num_samples=8)) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert loader._iterator is under_way
    assert len(list(running)) == 4


def test_limit_counts_in_the_batches_of_such_a_loader():
    assert samples(draw(Twice(Numbers(), batch_size=8), num_samples=99, limit=16)) == [2 * i for i in range(16)]


@pytest.mark.parametrize("size", [2, 16])
def test_a_sampler_of_batches_gives_keys_not_lists_of_samples(size):
    data = TensorDataset(torch.arange(N), torch.arange(N) + 0.5)
    loader = DataLoader(data, sampler=BatchSampler(RandomSampler(data), size, False), batch_size=None)
    probe_set = draw(loader, num_samples=32)
    assert probe_set.sizes == [size] * (32 // size) if size == 2 else set(probe_set.sizes) <= {16, 8}
    for inputs, targets in contents(probe_set):
        assert torch.equal(inputs + 0.5, targets)


def test_keys_of_whole_batches_may_be_anything():
    class Slices(Numbers):
        def __getitem__(self, key):
            first, last = key["rows"]
            return torch.arange(first, last)

    loader = DataLoader(Slices(), sampler=[{"rows": (0, 3)}, {"rows": (3, 9)}], batch_size=None)
    assert sorted(draw(loader).sizes) == [3, 6]


class Locked:
    """An iterable of its own that can't be copied, and counts its epochs."""

    def __init__(self, **arguments):
        self.lock = threading.Lock()
        self.epochs = 0
        self.loader = DataLoader(Numbers(), batch_size=8, **arguments)

    def __iter__(self):
        with self.lock:
            self.epochs += 1
        yield from self.loader


class Refuses:
    def __init__(self):
        self.numbers = Numbers()

    def __reduce_ex__(self, protocol):
        raise TypeError("not me")

    def __iter__(self):
        return iter(DataLoader(self.numbers, 8))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_that_cannot_be_copied_is_read_in_another_process(workers):
    source = Locked(num_workers=workers)
    source.thread = threading.local()  # nor can this
    assert samples(draw(source, num_samples=16)) == list(range(16))
    assert source.epochs == 0
    assert source.loader.dataset.reads == 0


def test_what_refuses_to_be_copied_is_read_in_another_process():
    assert samples(draw(Refuses(), num_samples=16)) == list(range(16))


def test_why_that_fails_is_said_with_what_helps():
    class Broken(Locked):
        def __iter__(self):
            raise KeyError("no such thing in a fork")

    expected = r"Broken can't be copied \(lock at 'lock'.*failed with KeyError \(.*no such thing.*data="
    with pytest.raises(MisconfigurationException, match=expected):
        draw(Broken())


def test_a_stream_of_a_package_that_is_shared_otherwise_is_read_from_a_copy():
    class Huggable(Stream):
        __module__ = "datasets.iterable_dataset"

    stream = Huggable()
    assert samples(draw(DataLoader(stream, batch_size=8))) == list(range(16))
    assert stream.place == 0


def test_an_iterable_at_its_end_is_started_again():
    class Resumable:
        at = 5

        def __iter__(self):
            while self.at < 5:
                self.at += 1
                yield torch.tensor([float(self.at)])
            self.at = 0

    source = Resumable()
    assert samples(draw(source, num_samples=3)) == [1, 2, 3]
    assert source.at == 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dataset", [False, True])
def test_what_a_trainer_iterates_over_gives_batches_whatever_else_it_can(dataset):
    class Batches(Numbers if dataset else object):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index >= 4:
                raise IndexError
            return torch.full((8, 2), float(index)), torch.tensor([index % 2] * 8)

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)

        def training_step(self, batch, _):
            assert batch[0].shape == (8, 2)
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    probe = Sharpness(schedule=EveryNSteps(2), num_samples=16)
    lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[probe],
    ).fit(Net(), Batches())  # fmt: skip
    assert [row["step"] for row in probe.history] == [0, 2]


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [16, 23, 40])
def test_a_loader_that_drops_its_last_batch_is_cut_into_full_ones(number):
    loader = DataLoader(Numbers(), batch_size=8, drop_last=True)
    assert draw(loader, num_samples=number).sizes == [8] * (number // 8)
    assert draw(loader, num_samples=5).sizes == [5]
    assert draw(loader, num_samples=15, micro_batch_size=5).sizes == [5, 5, 5]
    assert draw(DataLoader(Numbers(), batch_size=8), num_samples=23).sizes == [8, 8, 7]


def test_micro_batches_alike_are_as_many_in_each_process():
    how = Drawing(num_samples=23, micro_batch_size=4, world_size=3, alike=3)
    shares = [Drawing(**{**vars(how), "rank": rank}).draw(DataLoader(Numbers(), 8)) for rank in range(3)]
    assert [share.sizes for share in shares] == [[4, 4, 4]] * 3
    assert [len(share.batches) for share in shares] == [1, 1, 1]
    with pytest.raises(MisconfigurationException, match="empty"):
        Drawing(num_samples=2, world_size=3, alike=3).draw(DataLoader(Numbers(), 8))
    whole = Drawing(num_samples=99, world_size=2, alike=2).draw([torch.zeros(n) for n in (3, 4, 4, 4, 1)])
    assert whole.sizes == [4, 4]


# -- no validation data ------------------------------------------------------------------------------------------------

EMPTY = {
    "a list": list,
    "a dict": lambda: {"a": DataLoader([], 8), "b": DataLoader([], 8)},
    "a loader": lambda: DataLoader([], 8),
    "a list of them": lambda: [DataLoader([], 8)],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("namespace", [lightning, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("kind", [InitInterpolation, LayerCKA])
def test_empty_validation_data_is_as_none(namespace, empty, kind):
    class Net(namespace.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _, dataloader_idx=0):
            self.training_step(batch, _)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    class Data(namespace.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.randn(32, 4), torch.randint(3, (32,))), 8)

        def val_dataloader(self):
            return empty()

    probe = kind(schedule=EveryNSteps(2), num_samples=16)
    namespace.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[probe],
    ).fit(Net(), datamodule=Data())  # fmt: skip
    assert [row["step"] for row in probe.history] == [0, 2]
    assert sum("val data is left out: it is empty" in said for said in probe.say.said) == (empty is not list)


class Strict(DataLoader):
    """Pairs batches with an endless second source, and raises when it is asked for more than its length."""

    def __iter__(self):
        return (batch for batch, _ in zip(super().__iter__(), itertools.count(), strict=True))


def test_a_loader_is_asked_for_no_more_than_its_length():
    assert samples(draw(Strict(Numbers(), batch_size=8), num_samples=99)) == list(range(N))
