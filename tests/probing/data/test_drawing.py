"""Whatever the loader, the probe gets samples that are its own, and the user's next epoch is as it would have been."""

import itertools
import os
import random
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_probes.probing.data.drawing import Drawing, MicroBatch, ProbeSet
from tests.tester import flatten, generators

N = 40


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, size=N):
        self.size = size
        self.reads = 0
        self.log = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        self.reads += 1
        self.log.append(index)
        return torch.tensor(float(index))


class Stream(IterableDataset):
    def __init__(self, size=N):
        self.size = size
        self.place = 0

    def __iter__(self):
        while self.place < self.size:
            self.place += 1
            yield torch.tensor(float(self.place - 1))


def contents(probe_set):
    return [batch.content for batch in probe_set.batches]


def samples(probe_set):
    return sorted(int(x) for batch in probe_set.batches for x in batch.content.flatten())


def same(first: ProbeSet, second: ProbeSet):
    assert dict(flatten([first.sizes, contents(first)])) == dict(flatten([second.sizes, contents(second)]))


def draw(loaders, num_samples=16, mode="max_size_cycle", **arguments):
    return Drawing(num_samples=num_samples, **arguments).draw(loaders, mode)


class TestMapStyle:
    def test_samples_are_distinct_and_batches_have_the_loaders_size(self):
        probe_set = draw(DataLoader(Numbers(), batch_size=8, shuffle=True))
        assert probe_set.sizes == [8, 8]
        assert [len(content) for content in contents(probe_set)] == [8, 8]
        assert len(set(samples(probe_set))) == 16
        assert probe_set.num_samples == 16

    def test_a_sorted_loader_is_sampled_all_over(self):
        chosen = samples(draw(DataLoader(Numbers(1000), batch_size=8)))
        assert min(chosen) < 250
        assert max(chosen) >= 750

    def test_another_seed_gives_other_samples_and_the_same_seed_the_same(self):
        loader = DataLoader(Numbers(), batch_size=8, shuffle=True)
        same(draw(loader, seed=1), draw(loader, seed=1))
        assert samples(draw(loader, seed=1)) != samples(draw(loader, seed=2))

    def test_more_samples_than_there_are_gives_all_of_them(self):
        assert samples(draw(DataLoader(Numbers(10), batch_size=4), num_samples=99)) == list(range(10))

    @settings(max_examples=50)
    @given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 30), st.integers(1, 5))
    def test_micro_batches_are_nearly_equal_and_split_across_any_number_of_processes(self, size, number, most, world):
        loader = DataLoader(range(size), batch_size=7)
        arguments = {"num_samples": number, "micro_batch_size": most}
        whole = draw(loader, **arguments)
        assert sum(whole.sizes) == min(size, number)
        assert max(whole.sizes) <= most
        assert max(whole.sizes) - min(whole.sizes) <= 1
        assert [batch.index for batch in whole.batches] == list(range(len(whole.sizes)))
        parts = [draw(loader, **arguments, rank=rank, world_size=world) for rank in range(world)]
        dealt = {batch.index: batch for part in parts for batch in part.batches}
        assert sum(len(part.batches) for part in parts) == len(whole.batches)
        for batch in whole.batches:
            assert torch.equal(dealt[batch.index].content, batch.content)
        for part in parts:
            assert part.sizes == whole.sizes
            assert torch.equal(part.first.content, whole.first.content)

    def test_the_users_collate_makes_the_batches(self):
        @dataclass
        class Graph:
            nodes: list

        loader = DataLoader(Numbers(), batch_size=8, collate_fn=lambda items: Graph([float(item) for item in items]))
        [first, second] = contents(draw(loader, micro_batch_size=12))
        assert isinstance(first, Graph)
        assert len(first.nodes) == len(second.nodes) == 8

    def test_a_dataset_that_reads_many_at_once_is_asked_to(self):
        class Many(Numbers):
            def __getitems__(self, indices):
                return [(torch.tensor(float(index)), len(indices)) for index in indices]

        [(x, together)] = contents(draw(DataLoader(Many(), batch_size=16)))
        assert len(x) == 16
        assert set(together.tolist()) == {16}

    @pytest.mark.parametrize("source", [Numbers(), list(range(N)), TensorDataset(torch.arange(N))])
    def test_a_dataset_is_as_good_as_a_loader(self, source):
        if isinstance(source, list):
            source = DataLoader(source, batch_size=64)
        probe_set = draw(source, num_samples=99)
        assert probe_set.sizes == [N]

    def test_something_with_items_and_a_length_is_a_dataset(self):
        class Table:
            def __len__(self):
                return N

            def __getitem__(self, index):
                return {"id": index}

        assert samples(SimpleNamespace(batches=[MicroBatch(0, N, contents(draw(Table(), 99))[0]["id"])])) == list(
            range(N)
        )

    def test_limit_uses_only_the_first_samples_of_the_loader(self):
        assert samples(draw(DataLoader(Numbers(), batch_size=4), limit=6)) == list(range(6))

    def test_workers_are_not_started_and_those_that_run_are_left_alone(self):
        loader = DataLoader(
            Numbers(), batch_size=8, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
        )
        draw(loader)
        assert loader._iterator is None
        running = iter(loader)
        next(running)
        before = loader._iterator
        draw(loader)
        assert loader._iterator is before
        assert len(list(running)) == 4

    def test_a_huge_dataset_costs_what_is_drawn_from_it(self):
        class Huge(Numbers):
            def __getitem__(self, index):
                return index

        probe_set = draw(DataLoader(Huge(10**12), batch_size=8, shuffle=True))
        assert min(x for content in contents(probe_set) for x in content.tolist()) > 10**9


class TestSamplers:
    @pytest.mark.parametrize(
        ("make", "allowed"),
        [
            (lambda data: DataLoader(data, sampler=SubsetRandomSampler([1, 3, 5, 7])), {1, 3, 5, 7}),
            (lambda data: DataLoader(Subset(data, [2, 4, 6])), {2, 4, 6}),
            (lambda data: DataLoader(data, sampler=WeightedRandomSampler([0, 1, 1] + [0] * (N - 3), 30)), {1, 2}),
            (lambda data: DataLoader(data, sampler=range(5, 9)), {5, 6, 7, 8}),
            (
                lambda data: DataLoader(data, sampler=RandomSampler(range(6), replacement=True, num_samples=3)),
                set(range(6)),
            ),
        ],
    )
    def test_only_what_the_sampler_gives_is_drawn(self, make, allowed):
        assert set(samples(draw(make(Numbers()), num_samples=99))) == allowed

    def test_a_sampler_with_a_generator_keeps_its_state(self):
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(Numbers(), batch_size=8, shuffle=True, generator=generator)
        weighted = WeightedRandomSampler([1.0] * N, 8, generator=generator)
        before = generator.get_state()
        draw(loader)
        draw(DataLoader(Numbers(), sampler=weighted))
        assert torch.equal(generator.get_state(), before)

    @pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(3)])
    def test_a_random_sampler_gives_the_same_whatever_came_before(self, generator):
        loader = DataLoader(Numbers(), sampler=WeightedRandomSampler([1.0] * N, 20, generator=generator))
        first = draw(loader)
        torch.rand(7, generator=generator)
        same(draw(loader), first)

    def test_batch_sampler_is_taken_batch_by_batch(self):
        class ByLength(Sampler):
            def __init__(self):
                self.batches = [[0], [1, 2], [3, 4, 5], [6, 7, 8, 9]]
                self.epochs = 0

            def __iter__(self):
                self.epochs += 1
                np.random.shuffle(self.batches)
                return iter(self.batches)

            def __len__(self):
                return 4

        sampler = ByLength()
        probe_set = draw(DataLoader(Numbers(), batch_sampler=sampler), num_samples=5)
        found = [sorted(int(x) for x in content) for content in contents(probe_set)]
        assert all(batch in [[0], [1, 2], [3, 4, 5], [6, 7, 8, 9]] for batch in found)
        assert sum(probe_set.sizes[:-1]) < 5 <= sum(probe_set.sizes)
        assert (sampler.epochs, sampler.batches) == (0, [[0], [1, 2], [3, 4, 5], [6, 7, 8, 9]])

    def test_batch_sampler_is_recut_on_request(self):
        loader = DataLoader(Numbers(), batch_sampler=BatchSampler(range(10, 20), 5, False))
        probe_set = draw(loader, num_samples=99, micro_batch_size=4)
        assert probe_set.sizes == [4, 3, 3]
        assert samples(probe_set) == list(range(10, 20))

    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("kind", [DistributedSampler, UnrepeatedDistributedSampler])
    def test_distributed_sampler_is_looked_through(self, kind, shuffle):
        sampler = kind(Numbers(11), num_replicas=3, rank=1, shuffle=shuffle)
        assert samples(draw(DataLoader(Numbers(11), sampler=sampler), num_samples=99)) == list(range(11))

    def test_lightnings_distributed_wrapper_is_looked_through(self):
        generator = torch.Generator().manual_seed(3)
        inner = SubsetRandomSampler(range(6), generator=generator)
        before = generator.get_state()
        wrapped = DistributedSamplerWrapper(inner, num_replicas=2, rank=0)
        plain = DataLoader(Numbers(), sampler=inner)
        same(draw(DataLoader(Numbers(), sampler=wrapped)), draw(plain))
        assert samples(draw(plain)) == list(range(6))
        batches = BatchSampler(wrapped, 2, drop_last=False)
        assert samples(draw(DataLoader(Numbers(), batch_sampler=batches))) == list(range(6))
        assert batches.sampler is wrapped
        assert torch.equal(generator.get_state(), before)

    def test_a_distributed_sampler_of_the_users_own_gives_what_it_gives_all_processes(self):
        class Odd(DistributedSampler):
            def __iter__(self):
                return iter(range(1 + 2 * self.rank, 12, 2 * self.num_replicas))

        for rank in range(2):
            sampler = Odd(Numbers(), num_replicas=2, rank=rank)
            assert samples(draw(DataLoader(Numbers(), sampler=sampler))) == [1, 3, 5, 7, 9, 11]

    @pytest.mark.parametrize("length", [None, 10])
    def test_endless_sampler_ends(self, length):
        class Endless(Sampler):
            def __iter__(self):
                return itertools.cycle(range(N))

        if length:
            Endless.__len__ = lambda self: length
        probe_set = draw(DataLoader(Numbers(), sampler=Endless()), num_samples=16)
        assert probe_set.num_samples == (length or 16)

    def test_sampler_that_cannot_be_copied_is_read_in_another_process(self):
        class Locked(Sampler):
            def __init__(self):
                self.lock = threading.Lock()
                self.epochs = 0

            def __iter__(self):
                self.epochs += 1
                return iter(range(self.epochs, 4))

        sampler = Locked()
        assert samples(draw(DataLoader(Numbers(), sampler=sampler))) == [1, 2, 3]
        assert sampler.epochs == 0

    def test_sampler_of_what_can_be_read_once_is_an_error_that_names_data(self):
        class Once(Sampler):
            def __init__(self):
                self.indices = (i for i in range(3))

            def __iter__(self):
                return self.indices

        with pytest.raises(MisconfigurationException, match=r"Once can't be read.*generator at 'indices'.*data="):
            draw(DataLoader(Numbers(), sampler=Once()))


class TestWholeBatches:
    class Batches(Numbers):
        """Item i is a batch of i + 1 samples."""

        def __getitem__(self, index):
            return torch.full((index + 1,), float(super().__getitem__(index)))

    def test_batches_are_taken_until_there_are_samples_enough(self):
        data = self.Batches()
        probe_set = draw(DataLoader(data, batch_size=None), num_samples=30)
        assert probe_set.sizes == [len(content) for content in contents(probe_set)]
        assert sum(probe_set.sizes[:-1]) < 30 <= sum(probe_set.sizes)
        assert data.reads == 0

    def test_every_process_knows_the_sizes_of_all(self):
        loader = DataLoader(self.Batches(), batch_size=None)
        whole = draw(loader, num_samples=60)
        parts = [draw(loader, num_samples=60, rank=rank, world_size=2) for rank in range(2)]
        assert [part.sizes for part in parts] == [whole.sizes, whole.sizes]
        dealt = {batch.index: batch.content for part in parts for batch in part.batches}
        assert all(torch.equal(dealt[batch.index], batch.content) for batch in whole.batches)

    def test_limit_counts_batches(self):
        assert draw(DataLoader(self.Batches(), batch_size=None), num_samples=999, limit=3).sizes in (
            [list(order) for order in itertools.permutations([1, 2, 3])]
        )

    @pytest.mark.parametrize(
        ("batch", "size"),
        [
            (torch.zeros(3, 2), 3),
            ([torch.zeros(()), torch.zeros(5)], 5),
            ({"x": np.zeros((4, 2))}, 4),
            (OrderedDict(x=[torch.zeros(6)]), 6),
            (SimpleNamespace(x=torch.zeros(7)), 7),
            ("no tensor", 1),
        ],
    )
    def test_size_of_a_batch_of_any_kind(self, batch, size):
        assert draw(DataLoader([batch], batch_size=None, collate_fn=lambda item: item)).sizes == [size]

    def test_a_list_of_batches(self):
        batches = [(torch.full((4, 2), float(i)), torch.zeros(4)) for i in range(5)]
        probe_set = draw(batches, num_samples=10)
        assert probe_set.sizes == [4, 4, 4]
        contents(probe_set)[0][0].add_(9)
        assert not batches[0][0].any()

    def test_any_iterable_of_batches(self):
        class Loader:
            def __init__(self):
                self.epochs = 0

            def __iter__(self):
                self.epochs += 1
                return iter([torch.zeros(3), torch.ones(3)])

        loader = Loader()
        assert draw(loader, num_samples=4).sizes == [3, 3]
        assert loader.epochs == 0

    def test_generator_of_batches_is_an_error_that_names_data(self):
        generator = (torch.zeros(3) for _ in range(3))
        with pytest.raises(MisconfigurationException, match=r"generator can't be read.*data="):
            draw(generator)
        assert len(list(generator)) == 3


class TestStreams:
    def test_the_stream_stays_where_it_is(self):
        stream = Stream()
        loader = DataLoader(stream, batch_size=8)
        probe_set = draw(loader, num_samples=12)
        assert probe_set.sizes == [6, 6]
        assert samples(probe_set) == list(range(12))
        assert stream.place == 0
        assert len(list(loader)) == 5

    def test_a_short_stream_is_read_whole(self):
        assert samples(draw(DataLoader(Stream(5), batch_size=2), num_samples=99)) == list(range(5))
        assert samples(draw(Stream(5), num_samples=99)) == list(range(5))

    def test_stream_of_batches(self):
        class Batches(Stream):
            def __iter__(self):
                for start in range(0, self.size, 4):
                    yield torch.arange(start, start + 4)

        probe_set = draw(DataLoader(Batches(), batch_size=None), num_samples=10)
        assert probe_set.sizes == [4, 4, 4]

    def test_limit(self):
        assert samples(draw(DataLoader(Stream(), batch_size=2), limit=3)) == [0, 1, 2]
        assert draw(DataLoader(Stream(), batch_size=None), limit=3).sizes == [1, 1, 1]

    def test_processes_share_a_stream(self):
        loader = DataLoader(Stream(), batch_size=4)
        whole = draw(loader)
        parts = [draw(loader, rank=rank, world_size=3) for rank in range(3)]
        assert sorted(x for part in parts for x in samples(part)) == samples(whole)
        assert all(part.sizes == whole.sizes for part in parts)

    def test_stream_that_cannot_be_copied_is_an_error_that_names_data(self):
        class Socket(Stream):
            def __init__(self):
                super().__init__()
                self.source = iter(x for x in range(3))

        with pytest.raises(MisconfigurationException, match=r"Socket can't be read.*generator at 'source'.*data="):
            draw(DataLoader(Socket(), batch_size=2))

    def test_remedies_that_the_error_names_work(self):
        class Asked(IterableDataset):
            def __iter__(self):
                return (x for x in range(3))

        assert samples(draw(DataLoader(Asked(), batch_size=2))) == [0, 1, 2]
        assert draw(TensorDataset(torch.arange(3))).num_samples == 3

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_scripted_transform_is_copied_by_nobody(self):
        class Scripted(Numbers):
            def __init__(self):
                super().__init__()
                self.transform = torch.jit.script(nn.ReLU())

            def __getitem__(self, index):
                return self.transform(torch.tensor(float(index)))

        assert len(samples(draw(DataLoader(Scripted(), batch_size=2), num_samples=4))) == 4


class TestUndisturbed:
    class Own(Numbers):
        """Draws from generators of its own, from those of the process, and counts."""

        def __init__(self):
            super().__init__()
            self.torch = torch.Generator().manual_seed(1)
            self.numpy = np.random.default_rng(1)
            self.legacy = np.random.RandomState(1)
            self.python = random.Random(1)
            self.noise = [lambda: float(torch.rand(1, generator=self.torch)), self.numpy.random, self.legacy.rand]

        def __getitem__(self, index):
            x = super().__getitem__(index)
            own = sum(noise() for noise in self.noise) + self.python.random()
            process = float(torch.rand(())) + np.random.rand() + random.random()
            return x, own, process, self.reads

    class Locked(Own):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def __getitem__(self, index):
            with self.lock:
                return super().__getitem__(index)

    @pytest.mark.parametrize("kind", [Own, Locked], ids=["copied", "forked"])
    def test_the_users_next_epoch_is_as_it_would_have_been(self, kind):
        def epoch(probed):
            torch.manual_seed(5)
            np.random.seed(5)
            random.seed(5)
            data = kind()
            loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))
            if probed:
                draw(loader)
            return dict(flatten([list(loader), data.log, data.reads, generators()]))

        assert epoch(True) == epoch(False)

    @pytest.mark.parametrize("kind", [Own, Locked], ids=["copied", "forked"])
    def test_samples_depend_on_the_seed_alone_not_on_the_number_of_processes(self, kind):
        loader = DataLoader(kind(), batch_size=4)
        torch.manual_seed(1)
        whole = draw(loader)
        torch.manual_seed(2)
        parts = [draw(loader, rank=rank, world_size=2) for rank in range(2)]
        dealt = {batch.index: batch.content for part in parts for batch in part.batches}
        assert dict(flatten([dealt[i] for i in range(4)])) == dict(flatten(contents(whole)))

    def test_a_dataset_with_what_an_old_cython_compiled_is_as_it_is_now_for_every_batch(self):
        class Compiled:
            __module__ = property(lambda self: "somewhere")

        class Counting(Numbers):
            part = None

            def __getitem__(self, index):
                return super().__getitem__(index), self.reads

        data = Counting()
        data.part = Compiled()
        assert [reads.tolist() for _, reads in contents(draw(DataLoader(data, batch_size=4)))] == [[1, 2, 3, 4]] * 4
        assert data.reads == 0

    @pytest.mark.parametrize("kind", [Own, Locked], ids=["copied", "forked"])
    def test_noise_is_not_the_same_in_every_batch(self, kind):
        firsts = [
            content[column][0].item()
            for content in contents(draw(DataLoader(kind(), batch_size=4)))
            for column in (1, 2)
        ]
        assert len(set(firsts)) == 8

    def test_a_forked_dataset_was_read_elsewhere(self):
        class Where(Dataset):
            lock = None

            def __init__(self):
                self.lock = threading.Lock()

            def __len__(self):
                return 4

            def __getitem__(self, index):
                told = torch.utils.data.get_worker_info()  # as in training with such a loader
                return {"process": os.getpid(), "told": told, "array": np.zeros(2)}

        [batch] = contents(draw(DataLoader(Where(), batch_size=4, collate_fn=lambda items: items)))
        assert all(item["process"] != os.getpid() and item["told"] is None for item in batch)
        assert isinstance(batch[0]["array"], np.ndarray)

    def test_an_error_in_the_dataset_is_the_users_own(self):
        class Broken(Numbers):
            def __getitem__(self, index):
                raise KeyError("no such file")

        with pytest.raises(KeyError, match="no such file"):
            draw(DataLoader(Broken()))

    def test_open_files_keep_their_place(self, tmp_path):
        path = tmp_path / "data.bin"
        path.write_bytes(bytes(range(200)) * 1000)

        class Records(Dataset):
            def __init__(self):
                self.file = path.open("rb")
                self.lock = None

            def __len__(self):
                return 1000

            def __getitem__(self, index):
                self.file.seek(index * 200)
                return torch.tensor([*self.file.read(3), index])

        for lock in (None, threading.Lock()):
            data = Records()
            data.lock = lock
            data.file.read(10)  # which reads ahead
            [content] = contents(draw(DataLoader(data, batch_size=16, shuffle=True)))
            assert content[:, :3].tolist() == [[0, 1, 2]] * 16
            assert data.file.tell() == 10
            assert data.file.read(100_000) == (bytes(range(200)) * 1000)[10:100_010]
            data.file.close()

    @pytest.mark.parametrize("data", [torch.arange(N) * 1.0, np.arange(N) * 1.0], ids=["torch", "numpy"])
    @pytest.mark.parametrize("collate", [None, lambda items: items])
    def test_a_dataset_that_changes_its_data_in_place_changes_its_own(self, data, collate):
        class Doubling(Dataset):
            def __init__(self):
                self.data = data.clone() if torch.is_tensor(data) else data.copy()

            def __len__(self):
                return N

            def __getitem__(self, index):
                self.data[index : index + 1] *= 2
                return index, self.data[index : index + 1]

        dataset = Doubling()
        probe_set = draw(DataLoader(dataset, batch_size=4, collate_fn=collate))
        assert (dataset.data == data).all()
        pairs = [zip(*content, strict=True) if collate is None else content for content in contents(probe_set)]
        found = [(int(index), float(x[0])) for pair in pairs for index, x in pair]
        assert len(found) == 16
        assert all(x == 2 * index for index, x in found)

    @pytest.mark.parametrize("zeros", [np.zeros, torch.zeros])
    def test_data_too_large_to_copy_is_read_where_it_lies(self, zeros, monkeypatch):
        monkeypatch.setattr("lightning_probes.probing.data.reading._COPIED_BYTES", 100)

        def address(values):
            return torch.as_tensor(values).data_ptr()

        class Pointers(Numbers):
            def __init__(self):
                super().__init__()
                self.large, self.small = zeros(1000), zeros(2)

            def __getitem__(self, index):
                return torch.tensor([address(self.large), address(self.small)])

        data = Pointers()
        [content] = contents(draw(DataLoader(data, batch_size=16)))
        assert set(content[:, 0].tolist()) == {address(data.large)}
        assert address(data.small) not in content[:, 1].tolist()

    def test_collate_functions_with_state_are_copied(self):
        class Padding:
            def __init__(self):
                self.longest = 0

            def __call__(self, items):
                self.longest += 1
                return torch.stack(items)

        collate = Padding()
        draw(DataLoader(Numbers(), batch_size=8, collate_fn=collate))
        draw(DataLoader(Stream(), batch_size=8, collate_fn=collate))
        assert collate.longest == 0

    def test_generators_are_put_back_when_reading_fails(self):
        class Broken(Numbers):
            def __getitem__(self, index):
                torch.rand(1)
                raise KeyError

        before = dict(flatten(generators()))
        with pytest.raises(KeyError):
            draw(DataLoader(Broken()))
        assert dict(flatten(generators())) == before


class TestSeveralLoaders:
    def loaders(self, kind):
        a, b = DataLoader(Numbers(8), batch_size=4), DataLoader(Numbers(20), batch_size=5)
        return {"dict": {"a": a, "b": b}, "list": [a, b], "tuple": (a, b), "nested": {"a": a, "more": [b]}}[kind]

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize("kind", ["dict", "list", "nested"])
    @pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
    def test_they_are_recombined_as_lightning_does(self, kind, mode):
        def shapes(batch):
            return [(path, text.split("]")[0]) for path, text in flatten(batch)]

        loaders = self.loaders(kind)
        expected = [shapes(batch) for batch, *_ in CombinedLoader(loaders, mode)]
        found = draw(loaders, num_samples=99, mode=mode)
        assert [shapes(content) for content in contents(found)] == expected
        assert len(found.sizes) == len(expected)
        assert [batch.index for batch in found.batches] == list(range(len(expected)))
        same(draw(CombinedLoader(loaders, mode), num_samples=99), found)

    def test_size_is_that_of_the_largest_part(self):
        assert draw(self.loaders("list"), num_samples=99).sizes == [5, 5, 5, 5]

    def test_in_sequence_they_share_the_samples(self):
        probe_set = draw(self.loaders("list"), num_samples=10, mode="sequential")
        assert probe_set.sizes == [3, 2, 5]

    def test_each_gives_as_many_samples_as_asked_for(self):
        probe_set = draw(self.loaders("dict"), num_samples=6)
        assert Counter(len(content["b"]) for content in contents(probe_set)) == {3: 2}

    def test_processes_share_the_combinations(self):
        whole = draw(self.loaders("dict"), num_samples=99)
        parts = [draw(self.loaders("dict"), num_samples=99, rank=rank, world_size=3) for rank in range(3)]
        dealt = {batch.index: batch.content for part in parts for batch in part.batches}
        assert dict(flatten([dealt[i] for i in range(4)])) == dict(flatten(contents(whole)))
        assert all(part.sizes == whole.sizes for part in parts)


class TestErrors:
    @pytest.mark.parametrize("empty", [[], {}, DataLoader([]), DataLoader(Stream(0), batch_size=2)])
    def test_no_data(self, empty):
        with pytest.raises(MisconfigurationException, match=r"the probe data is empty.*data="):
            draw(empty)

    @pytest.mark.parametrize("wrong", [torch.zeros(3), np.zeros(3), "train.csv", {"x": torch.zeros(3)}, 5, None])
    def test_no_loader(self, wrong):
        with pytest.raises(MisconfigurationException, match="data="):
            draw(wrong)
