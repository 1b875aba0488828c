"""Micro-batches have sizes that training has, where the user's code depends on them."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps, InitInterpolation, LayerCKA, Sharpness

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class Queue(Net):
    """A queue of keys whose length is a multiple of the batch size."""

    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.randn(4, 200))

    def training_step(self, batch, _):
        x = self(batch[0])
        assert 200 % len(x) == 0
        self.queue = torch.cat([self.queue[:, len(x) :], x.detach().T], 1)
        return F.cross_entropy(x @ self.queue, torch.zeros(len(x), dtype=torch.long))


class Carried(Net):
    """Hidden states go on from batch to batch."""

    hidden = None

    def training_step(self, batch, _):
        hidden = self(batch[0])
        if self.hidden is not None:
            hidden = hidden + self.hidden
        self.hidden = hidden.detach()
        return hidden.square().mean()


class Negatives(Net):
    """Each sample is told from the others of its batch."""

    def training_step(self, batch, _):
        x = F.normalize(self(batch[0]), dim=1)
        return F.cross_entropy(x @ x.T, torch.arange(len(x)))


def fitted(module, probe, samples=400, size=100):
    loader = DataLoader(TensorDataset(torch.randn(samples, 6)), size)
    trainer = L.Trainer(max_epochs=1, logger=False, accelerator="cpu", callbacks=[probe, Sizes()], **QUIET)
    trainer.fit(module, loader)
    return trainer.callbacks[-1].found, "\n".join(sorted(probe.say.said))


class Sizes(L.Callback):
    def on_train_end(self, trainer, pl_module):
        [probe] = [callback for callback in trainer.callbacks if hasattr(callback, "say")]
        self.found = [*probe.runner.samples.sets["train"].sizes]


@pytest.mark.parametrize("kind", [Sharpness, InitInterpolation, LayerCKA])
@pytest.mark.parametrize("module", [Queue, Carried], ids=["queue", "hidden states"])
def test_what_needs_batches_of_one_size_gets_them(module, kind):
    sizes, said = fitted(module(), kind(num_samples=250, schedule=EveryNSteps(2, start=2)))
    assert sizes == [100, 100]
    assert ("can't be computed on 84 samples: using 100" in said) or ("depends on the batch size" in said)


def test_even_if_that_takes_more_samples():
    sizes, said = fitted(Queue(), Sharpness(num_samples=60, schedule=EveryNSteps(2)))
    assert sizes == [100]
    assert "can't be computed on 60 samples: using 100" in said


def test_negatives_from_the_batch_are_as_many_as_in_training():
    sizes, said = fitted(Negatives(), Sharpness(num_samples=250, schedule=EveryNSteps(2)))
    assert sizes == [100, 100]
    assert "depends on the batch size: micro-batches have 100 samples" in said


def test_where_there_are_fewer_samples_than_in_a_batch_that_is_said():
    sizes, said = fitted(Negatives(), Sharpness(num_samples=60, schedule=EveryNSteps(2)))
    assert sizes == [60]
    assert "pass num_samples=100" in said


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        (Net, {"num_samples": 250}, [84, 83, 83]),
        (Negatives, {"num_samples": 250, "micro_batch_size": 50}, [50] * 5),
        (Negatives, {"num_samples": 200}, [100, 100]),
    ],
    ids=["a mean", "a size of the user's", "sizes of training"],
)
def test_otherwise_samples_are_split_as_usual_without_a_message(module, arguments, expected):
    sizes, said = fitted(module(), Sharpness(schedule=EveryNSteps(2), **arguments))
    assert sizes == expected
    assert "size of a batch" not in said


def test_data_of_less_than_a_batch_is_a_batch_of_training():
    sizes, said = fitted(Negatives(), Sharpness(num_samples=250, schedule=EveryNSteps(2)), samples=40)
    assert sizes == [40]
    assert "size of a batch" not in said


def test_a_finished_module_is_evaluated_on_such_sizes_too():
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(400, 6)), 100)
    probe = Sharpness(num_samples=250, quantities=("sam",))
    assert "sharpness/sam" in probe.evaluate(Queue(), loader)
    assert any("using 100" in said for said in probe.say.said)


class Shrinks(Net):
    """Writes to a parameter that it also trains."""

    def training_step(self, batch, _):
        self.net.weight.data.mul_(0.9)
        return super().training_step(batch, _)


@pytest.mark.filterwarnings("ignore")
def test_a_write_changes_no_weights_while_sizes_are_found_out_and_is_said():
    def weights(*probes):
        torch.manual_seed(0)
        module, data = Shrinks(), TensorDataset(torch.randn(400, 6))
        callbacks = [*probes]
        L.Trainer(max_epochs=1, logger=False, accelerator="cpu", callbacks=callbacks, **QUIET).fit(
            module, DataLoader(data, 100)
        )
        return module.net.weight

    probe = Sharpness(num_samples=250, schedule=EveryNSteps(2), on_error="warn")
    assert torch.equal(weights(probe), weights())
    assert any("to parameter 'net.weight'" in said for said in probe.say.said)
