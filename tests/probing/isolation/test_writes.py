"""A write to the user's parameters is noticed whichever way it was made, and put back bit for bit."""

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps, FisherTrace, LayerCKA, Sharpness
from lightning_probes.probing.checks import naming
from lightning_probes.probing.isolation.writes import WrittenError, is_written, unwritten
from tests.callbacks.models import trainer


def net(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Linear(4, 2, dtype=dtype))
    layers[1].requires_grad_(False)
    return layers


WRITES = {
    "in place": lambda p: p.mul_(0.5),
    "through data": lambda p: p.data.clamp_(-0.01, 0.01),
    "one element": lambda p: p.data.view(-1)[:1].add_(1e-3),
    "through numpy": lambda p: p.detach().numpy().fill(1),
    "not a number": lambda p: p.data.view(-1)[:1].fill_(float("nan")),
}


def bits(module):
    return [p.detach().clone().view(-1).view(torch.uint8).tolist() for p in module.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["0.weight", "1.bias"])
@pytest.mark.parametrize("how", WRITES)
def test_a_write_is_noticed_and_put_back_if_there_is_a_copy(how, name, keep, dtype):
    layers = net(dtype)
    before = bits(layers)
    write = torch.no_grad()(unwritten(layers, keep)(WRITES[how]))
    with pytest.raises(WrittenError, match=rf"wrote to parameter '{name}'.*pass loss_fn="):
        write(layers.get_parameter(name))
    assert (bits(layers) == before) == keep


@pytest.mark.parametrize("keep", [True, False])
def test_reading_is_no_writing_whatever_the_parameters(keep):
    layers = net()
    layers[0].weight.data[0, 0] = float("nan")
    layers.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    layers.part = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    layers.odd = nn.Parameter(torch.ones(9)[1:4])
    with unwritten(layers, keep):
        layers(torch.ones(2, 3)).sum().backward()


def test_a_write_before_another_error_is_put_back_and_said():
    layers = net()
    before = bits(layers)
    with pytest.raises(WrittenError) as caught:
        unwritten(layers, keep=True)(writing_and_raising)(layers, ValueError("out of luck"))
    assert isinstance(caught.value.__cause__, ValueError)
    assert bits(layers) == before


def test_an_interruption_stays_one_and_the_write_is_put_back():
    layers = net()
    before = bits(layers)
    with pytest.raises(KeyboardInterrupt):
        unwritten(layers, keep=True)(writing_and_raising)(layers, KeyboardInterrupt())
    assert bits(layers) == before


def writing_and_raising(layers, error):
    layers[0].weight.data.zero_()
    raise error


def test_the_error_is_known_under_another_name():
    layers = net()
    with pytest.raises(MisconfigurationException, match="Sharpness: computing") as caught:
        naming("Sharpness")(unwritten(layers, keep=True)(layers[0].weight.data.zero_))()
    assert is_written(caught.value)
    assert not is_written(ValueError())


# -- in a fit ----------------------------------------------------------------------------------------------------------


class Teacher(L.LightningModule):
    """Its `training_step` writes to parameters once training has gone on for a while."""

    def __init__(self):
        super().__init__()
        self.net, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        if self.global_step >= 3:
            self.write(batch_idx)
        return (self.net(batch[0]) - self.teacher(batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Averages(Teacher):
    def write(self, batch_idx):
        with torch.no_grad():
            for mean, own in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(own, 0.1)


class Clamps(Teacher):
    def write(self, batch_idx):
        for parameter in self.net.parameters():
            parameter.data.clamp_(-0.1, 0.1)


class WritesNowAndThen(Teacher):
    def write(self, batch_idx):
        if batch_idx == 0:  # the first micro-batch of a probe alone has that number after the third step
            self.net.weight.data.mul_(1.5)


class Told(L.Callback):
    batches = 0

    def on_train_batch_end(self, *_):
        self.batches += 1


def fit(kind, *probes):
    L.seed_everything(0, verbose=False)
    module, told = kind(), Told()
    data = TensorDataset(torch.randn(32, 3))
    try:
        trainer(max_epochs=1, callbacks=[told, *probes]).fit(module, DataLoader(data, 4))
    except Exception as error:
        return module, told.batches, str(error)
    return module, told.batches, ""


@pytest.mark.parametrize("probe", [Sharpness, LayerCKA])
@pytest.mark.parametrize("kind", [Averages, Clamps, WritesNowAndThen])
def test_with_warnings_training_is_in_every_bit_as_without_and_nothing_more_is_measured(kind, probe):
    expected, batches, _ = fit(kind)
    measuring = probe(schedule=EveryNSteps(2), num_samples=8, micro_batch_size=4, on_error="warn")
    with pytest.warns(UserWarning, match="wrote to parameter '.*', which was put back.*loss_fn="):
        found, seen, _ = fit(kind, measuring)
    assert bits(found) == bits(expected)
    assert seen == batches
    assert [entry["step"] for entry in measuring.history] == [0, 2]


@pytest.mark.parametrize("kind", [Averages, Clamps, WritesNowAndThen])
def test_without_warnings_the_fit_ends_and_says_which_parameter(kind):
    _, batches, said = fit(kind, Sharpness(schedule=EveryNSteps(2), num_samples=8, micro_batch_size=4))
    assert batches == 4
    assert "wrote to parameter" in said
    assert "changed in training too" in said


def test_evaluate_leaves_the_module_as_it_was():
    module = nn.Linear(3, 2)
    before = bits(module)

    def predict(module, batch):
        module.weight.data.mul_(0.5)
        return module(batch[0]), batch[1]

    data = TensorDataset(torch.randn(8, 3), torch.randint(2, (8,)))
    with pytest.raises(MisconfigurationException, match="wrote to parameter 'weight', which was put back"):
        FisherTrace(predict_fn=predict, num_samples=8).evaluate(module, data)
    assert bits(module) == before
