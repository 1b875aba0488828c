"""A large probe set is read again at every pass: the same samples, bit for bit, and only one micro-batch in memory."""

from __future__ import annotations

import gc
import os
import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from lightning_probes import FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.probing import ProbeSet
from lightning_probes.probing.data import deferred
from tests.callbacks.models import Supervised, classification, loader
from tests.probing.data.test_drawing import N, Numbers, Stream, TestUndisturbed, draw
from tests.tester import flatten, generators

Own, Locked = TestUndisturbed.Own, TestUndisturbed.Locked


@pytest.fixture
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "LARGEST_KEPT", 0)


def both(monkeypatch: pytest.MonkeyPatch, source: Any, **how: Any) -> tuple[ProbeSet, ProbeSet]:
    """The set as it is kept in memory, and as it is read on access."""
    kept = draw(source, **how)
    with monkeypatch.context() as patch:
        patch.setattr(deferred, "LARGEST_KEPT", 0)
        read = draw(source, **how)
    return kept, read


def content_of(probe_set: ProbeSet) -> dict[str, str]:
    return dict(flatten([[batch.index, batch.size, batch.content] for batch in probe_set.batches]))


class Cached(Own):
    """Remembers what it has read, and gives that the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Any] = {}

    def __getitem__(self, index: int) -> Any:
        if index not in self.seen:
            self.seen[index] = super().__getitem__(index)
        return self.seen[index]


class Padding:
    """Collates with state: pads to the longest batch so far."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, items: Any) -> Tensor:
        self.batches.append(len(items))
        return torch.cat([torch.stack([item[0] for item in items]), torch.zeros(sum(self.batches))])


SOURCES: dict[str, Any] = {
    "generators of its own": lambda: DataLoader(Own(), batch_size=4, shuffle=True),
    "workers": lambda: DataLoader(Own(), batch_size=4, num_workers=2),
    "a cache": lambda: DataLoader(Cached(), batch_size=4),
    "a collate function with state": lambda: DataLoader(Own(), batch_size=4, collate_fn=Padding()),
    "a sampler of batches": lambda: DataLoader(Own(), batch_sampler=BatchSampler(RandomSampler(range(N)), 4, False)),
    "several loaders": lambda: {"a": DataLoader(Own(), batch_size=4), "b": [DataLoader(Numbers(), batch_size=3)]},
    "a loader beside a stream": lambda: [DataLoader(Own(), batch_size=4), DataLoader(Stream(), batch_size=4)],
    "a dataset": Own,
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_content_is_that_of_a_set_in_memory_at_every_pass(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    kept, read = both(monkeypatch, make(), num_samples=12, micro_batch_size=4)
    assert (kept.is_deferred, read.is_deferred) == (False, True)
    assert kept.sizes == read.sizes
    for _ in range(2):
        torch.rand(3), np.random.rand(), random.random()
        assert content_of(read) == content_of(kept)
    backwards = [batch.content for batch in reversed(read.batches)][::-1]
    assert dict(flatten(backwards)) == dict(flatten([batch.content for batch in kept.batches]))
    assert dict(flatten(read.first.content)) == dict(flatten(kept.first.content))
    assert [batch.index for batch in read.batches[1:]] == [batch.index for batch in kept.batches][1:]


@pytest.mark.parametrize("world", [2, 3])
def test_each_process_reads_its_share(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    for rank in range(world):
        how = {"num_samples": 20, "micro_batch_size": 4, "rank": rank, "world_size": world}
        kept, read = both(monkeypatch, DataLoader(Own(), batch_size=4), **how)
        assert content_of(read) == content_of(kept)
        assert read.is_deferred
        assert len(read.batches) == len([index for index in range(5) if index % world == rank])


@pytest.mark.usefixtures("nothing_is_kept")
def test_reading_leaves_generators_and_dataset_alone() -> None:
    data = Own()
    probe_set = draw(DataLoader(data, batch_size=4, generator=torch.Generator().manual_seed(1)))

    def state() -> dict[str, str]:
        own = [data.torch, data.numpy, data.legacy, data.python, data.log, data.reads]
        return dict(flatten([generators(), own]))

    before = state()
    content_of(probe_set)
    assert state() == before


class Large(Dataset[Tensor]):
    """Samples of so many numbers that no other tensor in the process has."""

    numbers = 1237

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((self.numbers,), float(index))


def live() -> int:
    """How many micro-batches of `Large` are in memory."""
    gc.collect()
    found = (each for each in gc.get_objects() if type(each) is Tensor and each.ndim == 2)
    return len({each.data_ptr() for each in found if each.shape[1] == Large.numbers})


def test_only_the_first_micro_batch_and_the_present_one_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, read = both(monkeypatch, DataLoader(Large(), batch_size=4), num_samples=N)
    assert read.is_deferred
    assert len(read.batches) == 10
    del kept
    assert live() == 1
    for batch in read.batches:
        assert batch.content.shape == (4, Large.numbers)
        assert live() == 2
    del batch
    assert live() == 1


def test_what_is_kept_is_decided_by_the_bytes_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    micro_batch = 4 * Large.numbers * 4
    monkeypatch.setattr(deferred, "LARGEST_KEPT", 5 * micro_batch)
    source = DataLoader(Large(), batch_size=4)
    assert not draw(source, num_samples=20).is_deferred
    assert draw(source, num_samples=24).is_deferred
    assert not draw(source, num_samples=36, world_size=2).is_deferred
    assert draw(source, num_samples=N, micro_batch_size=20).is_deferred


# -- while training goes on --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_kept")
def test_a_dataset_that_training_changes_gives_what_it_gave_at_first() -> None:
    class Changing(Numbers):
        def __init__(self) -> None:
            super().__init__()
            self.labels, self.weights = torch.zeros(N), np.ones(N)
            self.names, self.queue = [f"sample {i}" for i in range(20_000)], deque(range(20_000))
            self.strength, self.order = 1.0, {i: i for i in range(N)}

        def __getitem__(self, index: int) -> Any:
            numbers = self.labels[index], self.weights[index], self.strength, self.order[index], self.queue[0]
            return torch.tensor([*numbers, int(self.names[index].split()[1])])

    data = Changing()
    probe_set = draw(DataLoader(data, batch_size=4))
    before = content_of(probe_set)
    data.labels.add_(1), data.weights.__iadd__(1), data.names.reverse(), data.queue.rotate(3), data.order.clear()
    data.strength = 2.0
    assert content_of(probe_set) == before


@pytest.mark.usefixtures("nothing_is_kept")
def test_data_too_large_to_copy_that_training_changes_is_an_error_that_names_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning_probes.probing.data.reading._COPIED_BYTES", 100)
    data = TensorDataset(torch.ones(N, 10))
    probe_set = draw(DataLoader(data, batch_size=8))
    assert probe_set.is_deferred
    data.tensors[0][:, 9] += 1e-6
    with pytest.raises(MisconfigurationException, match=r"micro-batch 1 of the probe data has changed since.*data="):
        probe_set.batches[1]


# -- what stays in memory ----------------------------------------------------------------------------------------------


class Otherwise(Numbers):
    """What it gives depends on what nobody can seed."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([*os.urandom(8)])


class Doubling(Dataset[Tensor]):
    """Changes data in place that is too large to be restored for every batch."""

    def __init__(self) -> None:
        self.data = np.ones((N, 10_000))

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        self.data[index] *= 2
        return torch.from_numpy(self.data[index])


def initialise(worker: int) -> None:
    torch.utils.data.get_worker_info().dataset.reads = 100  # type: ignore[union-attr]


KEPT: dict[str, Any] = {
    "a loader whose workers are set up": lambda: DataLoader(
        Numbers(), batch_size=8, num_workers=1, worker_init_fn=initialise
    ),
    "a dataset that cannot be copied": lambda: DataLoader(Locked(), batch_size=8),
    "a stream": lambda: DataLoader(Stream(), batch_size=8),
    "a list of batches": lambda: [torch.ones(8), torch.zeros(8)],
    "a dataset that is never the same": lambda: DataLoader(Otherwise(), batch_size=8),
    "a dataset that changes itself": lambda: DataLoader(Doubling(), batch_size=8),
}


@pytest.mark.usefixtures("nothing_is_kept")
@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_what_cannot_be_read_again_stays_in_memory(make: Any) -> None:
    probe_set = draw(make())
    assert not probe_set.is_deferred
    assert len(probe_set.batches) == 2
    assert content_of(probe_set) == content_of(probe_set)


@pytest.mark.usefixtures("nothing_is_kept")
def test_an_error_in_the_dataset_is_the_users_own_and_comes_before_training() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> Any:
            if index == N - 1:
                raise KeyError("no such file")
            return super().__getitem__(index)

    with pytest.raises(KeyError, match="no such file"):
        draw(DataLoader(Broken(), batch_size=4), num_samples=N)


def test_a_dataset_that_fails_here_is_read_in_a_worker() -> None:
    class OnlyThere(Numbers):
        def __getitem__(self, index: int) -> Any:
            if torch.utils.data.get_worker_info() is None and index > 30:
                raise RuntimeError("only in a worker")
            return super().__getitem__(index)

    assert draw(DataLoader(OnlyThere(), batch_size=4, num_workers=1), num_samples=N).num_samples == N


# -- probes ------------------------------------------------------------------------------------------------------------


class Skipping(Supervised):
    """Skips batches that have a sample of class 2 at their beginning."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch[1][0] == 2 else super().training_step(batch, batch_idx)


def measured(probe: Probe, module: nn.Module) -> dict[str, str]:
    torch.manual_seed(1)
    results = probe.evaluate(module, loader(*classification()), init_state={
        name: 0.9 * value for name, value in module.state_dict().items()
    })  # fmt: skip
    return dict(flatten({key: vars(result) for key, result in results.items()}))


@pytest.mark.parametrize("kind", [FisherTrace, InitInterpolation, LayerCKA, Sharpness])
@pytest.mark.parametrize("module", [Supervised, Skipping])
def test_a_probe_measures_the_same_on_it(monkeypatch: pytest.MonkeyPatch, kind: Any, module: Any) -> None:
    def probe() -> Probe:
        loss_fn = (lambda net, batch: cross_entropy(net.net(batch[0]), batch[1])) if kind is FisherTrace else None
        return kind(num_samples=32, micro_batch_size=4, loss_fn=loss_fn)

    torch.manual_seed(0)
    net = module(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    kept = measured(probe(), net)
    monkeypatch.setattr(deferred, "LARGEST_KEPT", 0)
    assert measured(probe(), net) == kept
