"""Data that lives in the workers of its loader is read as one of them reads it, and training does not notice."""

import itertools
import os
import random
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from tests.probing.data.test_drawing import contents, draw, samples
from tests.tester import flatten, generators


class Sharded(IterableDataset):
    """Every worker gives numbers of its own."""

    def __init__(self, batch=None):
        self.batch = batch

    def __iter__(self):
        worker = get_worker_info()
        numbers = range(worker.id, 40, worker.num_workers)
        if self.batch is None:
            return (torch.tensor(float(i)) for i in numbers)
        return iter(torch.tensor([*numbers]).float().split(self.batch))


class Ranged(IterableDataset):
    """As in PyTorch's documentation: `worker_init_fn` gives each worker's copy a range of its own."""

    start, end = 0, 40

    def __iter__(self):
        assert get_worker_info().dataset is self
        return (torch.tensor(float(i)) for i in range(self.start, self.end))


def split(number):
    worker = get_worker_info()
    share = 40 // worker.num_workers
    worker.dataset.start, worker.dataset.end = number * share, (number + 1) * share
    assert worker.id == number


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_stream_is_read_as_its_workers_give_it(workers):
    loader = DataLoader(Sharded(), batch_size=4, num_workers=workers)
    trained = torch.cat(list(itertools.islice(loader, 4)))
    assert samples(draw(loader, num_samples=16)) == sorted(trained.int().tolist())
    assert samples(draw(loader, num_samples=99)) == list(range(40))


def test_each_worker_of_a_stream_is_set_up_with_a_dataset_of_its_own():
    data = Ranged()
    loader = DataLoader(data, batch_size=5, num_workers=4, worker_init_fn=split)
    assert samples(draw(loader, num_samples=10)) == [*range(5), *range(10, 15)]
    assert samples(draw(loader, num_samples=40)) == list(range(40))
    assert (data.start, data.end) == (0, 40)


def test_a_stream_of_whole_batches_is_read_in_turn():
    probe_set = draw(DataLoader(Sharded(batch=5), batch_size=None, num_workers=2), num_samples=20)
    assert [content.tolist() for content in contents(probe_set)[:2]] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert probe_set.sizes == [5, 5, 5, 5]


class Opened(Dataset):
    """Knows its worker; some of it is there in workers only."""

    file = None

    def __len__(self):
        return 40

    def __getitem__(self, index):
        worker = get_worker_info()
        return torch.tensor([index, worker.num_workers, self.file is not None, worker.dataset is self]), os.getpid()


def opens(_):
    get_worker_info().dataset.file = "open"


@pytest.mark.parametrize("init", [None, opens])
def test_a_map_style_dataset_that_asks_for_its_worker_is_read_in_one(init):
    data = Opened()
    probe_set = draw(DataLoader(data, batch_size=8, num_workers=3, worker_init_fn=init))
    for rows, processes in contents(probe_set):
        assert rows[:, 1:].tolist() == [[3, init is not None, 1]] * 8
        assert os.getpid() not in processes.tolist()
    assert data.file is None


def test_without_workers_an_error_is_the_users_own():
    with pytest.raises(AttributeError, match="num_workers"):
        draw(DataLoader(Opened(), batch_size=8))


def test_a_dataset_that_fails_here_in_some_batches_only_is_read_on_in_a_worker():
    class Halfway(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            if index >= 20 and get_worker_info() is None:
                raise KeyError(index)
            return torch.tensor(float(index)) + torch.rand(())

    here = Halfway()
    found = draw(DataLoader(here, batch_size=8, num_workers=1), num_samples=40)
    assert samples(found) == list(range(40))


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_are_started_as_the_loader_starts_them(start):
    loader = DataLoader(Sharded(), batch_size=4, num_workers=2, multiprocessing_context=start)
    assert samples(draw(loader, num_samples=8)) == [0, 1, 2, 3, 4, 5, 6, 7]


class Drawn(Sharded):
    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(1)

    def __iter__(self):
        for number in super().__iter__():
            yield number + torch.rand((), generator=self.own) / 4 + torch.rand(()) / 4 + random.random() / 4


def test_reading_in_a_worker_leaves_generators_alone_and_is_the_same_again():
    data = Drawn()
    loader = DataLoader(data, batch_size=4, num_workers=2, generator=torch.Generator().manual_seed(3))

    def state():
        return dict(flatten([generators(), loader.generator.get_state(), data.own.get_state()]))

    before = state()
    first = contents(draw(loader))
    assert state() == before
    torch.rand(3), np.random.rand(), torch.rand(2, generator=data.own)
    assert dict(flatten(contents(draw(loader)))) == dict(flatten(first))


def test_a_file_that_is_read_by_its_number_keeps_its_place_when_another_process_reads_it(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(200)))

    class Numbered(Dataset):
        """As what holds a file outside Python does: what is shared with a fork has one place in both."""

        def __init__(self):
            self.file = os.open(path, os.O_RDONLY)
            self.lock = threading.Lock()

        def __len__(self):
            return 200

        def __getitem__(self, index):
            os.lseek(self.file, index, os.SEEK_SET)
            return int(os.read(self.file, 1)[0]), index

    data = Numbered()
    os.read(data.file, 10)
    [(read, indices)] = contents(draw(DataLoader(data, batch_size=16)))
    assert read.tolist() == indices.tolist()
    assert os.lseek(data.file, 0, os.SEEK_CUR) == 10
    os.close(data.file)
