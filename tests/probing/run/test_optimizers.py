import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.utils.data import DataLoader

from lightning_probes.probing.run.optimizers import optimizer_groups


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_groups_carry_their_own_options_and_names():
    module = net()
    groups = [{"params": module[0].parameters(), "lr": 0.5}, {"params": module[1].parameters(), "momentum": 0.9}]
    first, second = optimizer_groups([torch.optim.SGD(groups, lr=0.1)], module)
    assert (first.optimizer, first.options["lr"], first.options["momentum"]) == ("SGD", 0.5, 0)
    assert (second.options["lr"], second.options["momentum"]) == (0.1, 0.9)
    assert list(first.state) == ["0.weight", "0.bias"]
    assert list(second.state) == ["1.weight", "1.bias"]
    assert "params" not in first.options


def test_state_is_read_by_name_and_reading_creates_none():
    module = net()
    adam = torch.optim.Adam(module.parameters())
    [group] = optimizer_groups([adam], module)
    assert all(state == {} for state in group.state.values())
    assert len(adam.state) == 0
    module(torch.ones(1, 3)).sum().backward()
    adam.step()
    [group] = optimizer_groups([adam], module)
    assert torch.equal(group.state["1.bias"]["exp_avg_sq"], adam.state[module[1].bias]["exp_avg_sq"])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS])
def test_nothing_done_to_what_is_read_reaches_the_optimizer(kind):
    module = net()
    optimizer = kind(module.parameters(), lr=torch.tensor(0.1))
    for _ in range(2):
        optimizer.step(lambda: loss_with_gradients(module))
    before = copy.deepcopy(optimizer.state_dict())
    [group] = optimizer_groups([optimizer], module)
    spoil([dict(group.options), *map(dict, group.state.values())])
    assert str(optimizer.state_dict()) == str(before)


def loss_with_gradients(module):
    loss = module(torch.ones(1, 3)).square().sum()
    loss.backward()
    return loss


def spoil(value):
    if isinstance(value, torch.Tensor):
        value.data.fill_(7)
    elif isinstance(value, (list, dict)):
        for item in [*(value.values() if isinstance(value, dict) else value)]:
            spoil(item)
        value.clear()


def test_options_are_those_that_the_scheduler_left_at_this_step():
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.8)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    before = optimizer_groups([optimizer], module)
    optimizer.step()
    scheduler.step()
    [after] = optimizer_groups([optimizer], module)
    assert (before[0].options["lr"], after.options["lr"]) == (0.8, 0.4)


def test_frozen_parameters_and_those_of_other_modules_are_left_out():
    module, other = net(), net()
    module[0].bias.requires_grad_(False)
    [group] = optimizer_groups([torch.optim.SGD([*other.parameters(), *module.parameters()], lr=0.1)], module)
    assert list(group.state) == ["0.weight", "1.weight", "1.bias"]


def test_lightnings_wrapper_is_looked_through():
    module = net()
    wrapped = LightningOptimizer(torch.optim.Adam(module.parameters()))
    assert [group.optimizer for group in optimizer_groups([wrapped], module)] == ["Adam"]


def test_a_wrapper_that_changes_the_dynamics_goes_by_its_own_name():
    class Lookahead(torch.optim.SGD):
        optimizer = None

    class SGD(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1})

    module = net()
    lookahead = Lookahead(module.parameters(), lr=0.1)
    lookahead.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    names = [group.optimizer for group in optimizer_groups([lookahead, SGD(module.parameters())], module)]
    assert all(name.startswith(__name__) for name in names)
    assert names[0].endswith("Lookahead")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_torchs_own_go_by_their_plain_name(kind):
    module = net()
    [group] = optimizer_groups([kind(module.parameters(), lr=0.1)], module)
    assert group.optimizer == kind.__name__


def test_a_trainers_optimizers_are_read_in_the_middle_of_a_fit():
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, batch_idx):
            self.seen = optimizer_groups(self.trainer.optimizers, self)
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.4)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]

    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Module()
    L.Trainer(max_steps=3, logger=False, accelerator="cpu", **quiet).fit(module, DataLoader(torch.ones(3, 3)))
    [group] = module.seen
    assert (group.optimizer, group.options["lr"]) == ("AdamW", 0.1)
    assert group.state["net.0.weight"]["exp_avg"].shape == (4, 3)
