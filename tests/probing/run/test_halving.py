import gc
import itertools
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.halving import Samples, attempt, same_logits, same_mean_loss
from lightning_probes.probing.view import ModelView


def always(pairs, singles):
    return True


def samples(number=20, size=8, asked=16, **how):
    """Of numbered samples, so that what was drawn shows."""
    loader = DataLoader(TensorDataset(torch.arange(float(number))), batch_size=size)
    return Samples(lambda drawing: {"train": drawing.draw(loader)}, Drawing(asked, **how))


def drawn(some):
    return torch.cat([batch.content[0] for batch in some.sets["train"].batches]).tolist()


@given(number=st.integers(1, 40), size=st.integers(1, 16), asked=st.integers(1, 40))
def test_halving_takes_the_same_samples_in_smaller_micro_batches_down_to_one(number, size, asked):
    some = samples(number, size, asked)
    before, largest = drawn(some), some.largest
    while some.halve(always):
        assert drawn(some) == before
        assert some.largest <= largest // 2
        largest = some.largest
    assert some.largest == 1
    assert drawn(some) == before


@given(size=st.integers(1, 16), asked=st.integers(6, 40), world=st.integers(2, 3))
def test_halving_keeps_micro_batches_alike(size, asked, world):
    some = samples(40, size, asked, alike=world)
    before = drawn(some)
    while some.halve(always):
        sizes = some.sets["train"].sizes
        assert len(set(sizes)) == 1
        assert len(sizes) % world == 0
        assert drawn(some) == before
    assert some.largest == 1
    pairs, singles = (some.few(number)["train"] for number in (2, 1))
    assert pairs.num_samples == singles.num_samples
    assert {*pairs.sizes, *singles.sizes} == {1, 2}
    assert len(pairs.batches) % world == len(singles.batches) % world == 0


def test_what_comes_in_whole_batches_stays_as_it_is():
    batches = [torch.arange(4.0), torch.arange(4.0, 8.0)]
    some = Samples(lambda drawing: {"train": drawing.draw(batches)}, Drawing(8))
    assert not some.halve(always)
    assert some.largest == 4


def test_the_same_few_samples_decide_in_pairs_and_one_by_one():
    some, seen = samples(), []

    def divisible(pairs, singles):
        seen.append([[batch.content[0].tolist() for batch in split["train"].batches] for split in (pairs, singles)])
        return False

    assert not some.halve(divisible)
    ((pairs, singles),) = seen
    assert {len(batch) for batch in pairs} == {2}
    assert {len(batch) for batch in singles} == {1}
    assert list(itertools.chain(*pairs)) == list(itertools.chain(*singles))
    assert some.largest == 8


def test_nothing_is_halved_if_two_samples_do_not_fit_into_memory():
    def divisible(pairs, singles):
        raise torch.OutOfMemoryError("no memory for two")

    assert not samples().halve(divisible)


def test_another_error_in_deciding_is_not_hidden():
    def divisible(pairs, singles):
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        samples().halve(divisible)


def test_the_largest_is_that_of_all_sets():
    def draw(drawing):
        return {name: drawing.draw(DataLoader(range(16), batch_size=size)) for name, size in (("train", 2), ("val", 8))}

    some = Samples(draw, Drawing(16))
    assert some.largest == 8
    assert some.halve(always)
    assert some.largest == 4


# -- trying again ------------------------------------------------------------------------------------------------------


@given(failures=st.integers(0, 5))
def test_a_computation_is_repeated_each_time_memory_runs_out(failures):
    tries, halved = itertools.count(1), []

    def compute():
        if (number := next(tries)) <= failures:
            raise torch.OutOfMemoryError(f"try {number}")
        return number

    assert attempt(compute, Processes(), halved.append) == failures + 1
    assert [str(error) for error in halved] == [f"try {number}" for number in range(1, failures + 1)]


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no"), KeyboardInterrupt()])
def test_another_error_is_not_tried_again(error):
    def compute():
        raise error

    with pytest.raises(type(error)):
        attempt(compute, Processes(), pytest.fail)


def test_an_error_raised_by_halving_ends_the_attempt():
    def compute():
        raise MemoryError

    def halve(failure):
        raise RuntimeError("can't halve") from failure

    with pytest.raises(RuntimeError, match="can't halve") as caught:
        attempt(compute, Processes(), halve)
    assert isinstance(caught.value.__cause__, MemoryError)


def test_what_the_failed_try_held_is_free_when_it_is_tried_again():
    held = []

    def compute():
        if not held:
            large = torch.zeros(8)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("no more")
        gc.collect()
        return held[0]()

    assert attempt(compute, Processes(), lambda failure: None) is None


# -- whether it makes a difference -------------------------------------------------------------------------------------


@dataclass
class Loss:
    """Of a linear model on numbers of either sign."""

    how: str

    def __call__(self, module, batch):
        errors = (module(batch[0]) - 1).square().squeeze(1)
        if self.how == "mean":
            return errors.mean()
        if self.how == "weighted mean":
            weights = 1 + batch[0].squeeze(1).abs()
            return (weights * errors).sum() / weights.sum()
        if self.how == "sum":
            return errors.sum()
        return errors.mean() + module(batch[0]).var(unbiased=False)  # compared with each other


@pytest.mark.parametrize(
    ("how", "same"), [("mean", True), ("weighted mean", False), ("sum", False), ("coupled", False)]
)
def test_a_loss_that_is_no_mean_over_samples_is_noticed(how, same):
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(20, 1)), batch_size=8)
    some = Samples(lambda drawing: {"train": drawing.draw(loader)}, Drawing(16))
    module = nn.Linear(1, 1)
    pairs, singles = (ModelView(Twin(module), Objective(Loss(how), None), some.few(size)) for size in (2, 1))
    assert same_mean_loss(pairs, singles) == same


def test_a_loss_that_is_no_mean_on_one_of_the_sets_is_noticed():
    torch.manual_seed(0)
    sets = {name: DataLoader(TensorDataset(torch.randn(20, 1)), batch_size=8) for name in ("train", "val")}
    large = sets["val"].dataset.tensors[0]

    def loss(module, batch):
        errors = (module(batch[0]) - 1).square()
        return errors.sum() if (batch[0].flatten()[0] == large).any() else errors.mean()

    some = Samples(lambda drawing: {name: drawing.draw(each) for name, each in sets.items()}, Drawing(16))
    module = nn.Linear(1, 1)
    pairs, singles = (ModelView(Twin(module), Objective(loss, None), some.few(size)) for size in (2, 1))
    assert not same_mean_loss(pairs, singles)


class Sequences(nn.Module):
    """A recurrent network over padded sequences, which runs from the left and never sees the padding before its end."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 3, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def padded(rows):
    inputs = nn.utils.rnn.pad_sequence([row[: 2 + index % 3] for index, row in rows], batch_first=True)
    return inputs, inputs.squeeze(2).long()


PREDICTIONS = {
    "each by itself": (lambda: nn.Linear(4, 3), lambda module, batch: (module(batch[0]), batch[1]), True),
    "compared with each other": (
        lambda: nn.Linear(4, 3),
        lambda module, batch: (module(batch[0]) @ module(batch[0]).T, torch.arange(len(batch[0]))),
        False,
    ),
    "normalised together": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        lambda module, batch: (module(batch[0]) if len(batch[0]) > 1 else module[0](batch[0]), batch[1]),
        False,
    ),
    "less their mean": (
        lambda: nn.Linear(4, 3), lambda module, batch: (module(batch[0]) - module(batch[0]).mean(0), None), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PREDICTIONS)
def test_logits_that_depend_on_other_samples_are_noticed(what):
    torch.manual_seed(0)
    make, predict, same = PREDICTIONS[what]
    module = make()
    loader = DataLoader(TensorDataset(torch.randn(20, 4), torch.arange(20) % 3), batch_size=8)
    some = Samples(lambda drawing: {"train": drawing.draw(loader)}, Drawing(16))
    pairs, singles = (ModelView(Twin(module), Objective(None, predict), some.few(size)) for size in (2, 1))
    assert same_logits(pairs, singles) == same


def test_logits_of_padded_sequences_are_compared_where_both_have_some():
    torch.manual_seed(0)
    rows = [(index, torch.randn(5, 1)) for index in range(20)]
    loader = DataLoader(rows, batch_size=8, collate_fn=padded)
    some = Samples(lambda drawing: {"train": drawing.draw(loader)}, Drawing(16))
    module = Sequences()
    predict = lambda module, batch: (module(batch[0]), batch[1])  # noqa: E731
    pairs, singles = (ModelView(Twin(module), Objective(None, predict), some.few(size)) for size in (2, 1))
    assert same_logits(pairs, singles)
