"""The twin computes what the module computes, and nothing that it does reaches the module or outlives the pass."""

import gc
import itertools
import tempfile
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_probes.probing.isolation.depth import CopyError
from lightning_probes.probing.isolation.stand_ins import Muted
from lightning_probes.probing.isolation.twin import Twin
from tests.tester import attributes, flatten

X = torch.linspace(-1, 1, 12).reshape(4, 3)
Y = torch.tensor([0, 1, 0, 1])


def state(module):
    """Everything there is to a module, as text."""
    parts = {
        "state": module.state_dict(),
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "training": {name: child.training for name, child in module.named_modules()},
        "hooks": {n: {k: v for k, v in vars(m).items() if k.endswith("_hooks")} for n, m in module.named_modules()},
        "attributes": {name: attributes(child) for name, child in module.named_modules()},
        "tensors": {name: t for child in module.modules() for name, t in vars(child).items() if torch.is_tensor(t)},
    }
    return dict(flatten(parts))


def trainer(**arguments):
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    return L.Trainer(**{"accelerator": "cpu", "logger": False, "max_steps": 1, **quiet, **arguments})


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Config(dict):
    """Its keys are attributes too, as some libraries have it, and hide the methods of a dict."""

    def __init__(self, **content):
        super().__init__(content)
        self.__dict__.update(content)


def fitted(module, **arguments):
    """A module that has taken a step under a Trainer, to which it is still attached."""
    trainer(**arguments).fit(module, DataLoader(X, batch_size=2))
    return module


class Chaotic(Net):
    """Its step changes everything within reach, in every way there is."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"width": 2, "nested": {"list": [1]}})
        self.norm = nn.BatchNorm1d(2)
        self.child = Net()
        self.register_buffer("ema", torch.zeros(2))
        self.register_buffer("center", torch.zeros(2), persistent=False)
        self.accuracy = MulticlassAccuracy(2)
        self.metrics = MetricCollection({"matrix": MulticlassConfusionMatrix(2), "mean": MeanMetric()})
        self.count = 0
        self.array = np.zeros(2)
        self.last = None
        self.parts = {
            "list": [], "dict": {}, "set": set(), "counter": Counter(), "deque": deque(maxlen=2),
            "default": defaultdict(list), "ordered": OrderedDict(a=1), "bag": type("Bag", (), {"__slots__": ("n",)})(),
        }  # fmt: skip
        self.parts["bag"].n = 0
        self.lock = threading.Lock()
        self.append = self.parts["list"].append
        self.bound = self.count_up
        self.partial = partial(self.count_up, 2)
        self.generator = torch.Generator().manual_seed(1)
        self.numbers = np.random.default_rng(1)
        self.layer.register_forward_hook(lambda *_: self.count_up())
        self.norm.register_forward_pre_hook(self.on_norm)

    def count_up(self, by=1):
        self.count += by

    def on_norm(self, module, inputs):
        module.calls = getattr(module, "calls", 0) + 1

    def training_step(self, batch, batch_idx):
        with self.lock:
            x, y = batch
            logits = self.norm(self.layer(x + 0.1 * torch.randn(x.shape, generator=self.generator)))
            loss = nn.functional.cross_entropy(logits + self.numbers.random() + self.child(x), y)
        self.ema.mul_(0.9).add_(logits.mean(0))
        self.center.data.add_(1)
        self.last = logits
        self.accuracy(logits, y)
        self.metrics["matrix"].update(logits, y)
        self.metrics["mean"](loss)
        self.array += 1
        for change in (self.bound, self.partial, partial(self.append, loss)):
            change()
        self.parts["dict"]["new"] = self.parts["default"]["new"].append(1)
        self.parts["set"].add(1)
        self.parts["counter"].update("a")
        self.parts["deque"].append(1)
        self.parts["ordered"].move_to_end("a")
        self.parts["bag"].n += 1
        self.hparams.width = 7
        self.hparams.nested["list"].append(2)
        self.new_attribute = self.count
        self.layer.tag = "seen"
        self.eval_seen = not self.training
        self.log("loss", loss, on_step=True, on_epoch=True)
        if not self.training:  # Lightning refuses it in training
            self.child.log_dict({"child": loss})
        self.print("loss", loss)
        if self._trainer is not None:
            self.reach_for_the_trainer(loss)
        return loss

    def reach_for_the_trainer(self, loss):
        self.trainer.should_stop = True
        self.trainer.callback_metrics["loss"] = loss
        self.trainer.save_checkpoint("never.ckpt")
        self.logger.log_metrics({"direct": 1.0})
        self.logger.experiment.log_metrics({"direct": 1.0}, step=0)
        for optimizer in (self.optimizers(), self.trainer.optimizers[0]):
            optimizer.param_groups[0]["lr"] = 9.0
            optimizer.step()
            optimizer.zero_grad()
        self.lr_schedulers().step()


@pytest.fixture(params=["fitted", "alone"])
def chaotic(request, tmp_path):
    torch.manual_seed(0)
    module = Chaotic()
    if request.param == "alone":
        return module
    fit = trainer(logger=CSVLogger(tmp_path, name="run"))
    fit.fit(module, DataLoader(TensorDataset(X, Y), batch_size=4))
    assert fit.should_stop
    fit.should_stop = False
    return module


class TestUndisturbed:
    def test_a_step_on_the_twin_leaves_the_module_as_it_was(self, chaotic, capsys):
        before = state(chaotic)
        twin = Twin(chaotic)
        twin.module.training_step((X, Y), 0)
        assert state(chaotic) == before
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("enabled", [True, False])
    @pytest.mark.parametrize("part", [nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2))], ids=["copied", "refused"])
    def test_garbage_is_collected_after_it_is_made_at_the_earliest_and_only_where_it_was_before(self, part, enabled):
        net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(300)), part)
        collections = []
        was_enabled = gc.isenabled()
        gc.collect()  # or one that is almost due comes before
        gc.enable() if enabled else gc.disable()
        gc.callbacks.append(watch := lambda phase, info: collections.append(phase))
        try:
            with suppress(CopyError):
                Twin(net)
            assert gc.isenabled() == enabled
            assert collections.count("start") <= enabled
        finally:
            gc.callbacks.remove(watch)
            gc.enable() if was_enabled else gc.disable()

    def test_a_step_on_the_twin_leaves_the_trainer_as_it_was(self, tmp_path):
        module = Chaotic()
        fit = trainer(logger=CSVLogger(tmp_path))
        fit.fit(module, DataLoader(TensorDataset(X, Y), batch_size=4))

        def seen():
            schedulers = [config.scheduler.state_dict() for config in fit.lr_scheduler_configs]
            optimizers = [optimizer.state_dict() for optimizer in fit.optimizers]
            metrics = [fit.callback_metrics, fit.logged_metrics, fit.logger.experiment.metrics]
            return dict(flatten([metrics, schedulers, optimizers, fit.should_stop, sorted(vars(fit))]))

        fit.should_stop = False
        before, files = seen(), sorted(tmp_path.rglob("*"))
        twin = Twin(module)
        twin.module.training_step((X, Y), 0)
        assert twin.trainer.should_stop
        assert twin.module.optimizers().param_groups[0]["lr"] == 9.0 * 0.5
        assert seen() == before
        twin.forget()
        assert twin.module.optimizers().param_groups[0]["lr"] == fit.optimizers[0].param_groups[0]["lr"]
        assert not twin.trainer.should_stop
        assert sorted(tmp_path.rglob("*")) == files

    def test_the_twin_forgets_a_step(self, chaotic):
        twin = Twin(chaotic)
        new = state(twin.module)
        losses = []
        for _ in range(3):
            losses.append(twin.module.training_step((X, Y), 0).item())
            assert state(twin.module) != new
            twin.forget()
            assert state(twin.module) == new
        assert losses[0] == losses[1] == losses[2]

    def test_a_step_that_fails_halfway_is_forgotten_too(self, chaotic):
        twin = Twin(chaotic)
        new = state(twin.module)
        with pytest.raises(IndexError):
            twin.module.training_step((X, Y + 7), 0)
        twin.forget()
        assert state(twin.module) == new

    def test_hooks_that_a_probe_puts_on_the_twin_survive_forgetting(self):
        twin, seen = Twin(Net()), []
        handle = twin.module.layer.register_forward_hook(lambda *_: seen.append(1))
        twin.module(X)
        twin.forget()
        twin.module(X)
        handle.remove()
        twin.module(X)
        assert len(seen) == 2

    def test_an_alias_of_hooks_stays_one_while_there_are_none(self):
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[0].alias = net[1]._forward_hooks
        net[1].alias = net[0]._forward_hooks
        twin = Twin(net).module
        assert twin[0].alias is twin[1]._forward_hooks
        assert twin[1].alias is twin[0]._forward_hooks

    @pytest.mark.parametrize(("holder", "hooked"), [(0, 1), (1, 0)])
    def test_handles_of_hooks_belong_to_the_twin(self, holder, hooked):
        seen, probed = [], []
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[holder].handle = net[hooked].register_forward_hook(lambda *_: seen.append(1))
        net.seen = seen
        twin = Twin(net)
        twin.module[hooked].register_forward_hook(lambda *_: probed.append(1))
        twin.forget()
        twin.module(X)
        twin.module[holder].handle.remove()
        twin.module(X)
        assert (len(twin.module.seen), len(probed), len(seen)) == (1, 2, 0)
        net(X)
        assert len(seen) == 1


class TestSameComputation:
    def nets(self):
        scaled = nn.Linear(3, 3)
        parametrize.register_parametrization(scaled, "weight", Doubled())
        normed_lstm = nn.LSTM(3, 3)
        parametrizations.weight_norm(normed_lstm, "weight_hh_l0")
        traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
        return {
            "weight_norm by hook": weight_norm(nn.Linear(3, 3)),
            "weight_norm": parametrizations.weight_norm(nn.Linear(3, 3)),
            "spectral_norm": parametrizations.spectral_norm(nn.Linear(3, 3)),
            "parametrization": scaled,
            "weight_norm in an LSTM": First(normed_lstm),
            "LSTM": First(nn.LSTM(3, 3)),
            "GRU": First(nn.GRU(3, 3, num_layers=2, bidirectional=True)),
            "attention": First(nn.MultiheadAttention(3, 1), repeat=3),
            "traced": traced,
        }

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize(
        "name",
        ["weight_norm by hook", "weight_norm", "spectral_norm", "parametrization", "weight_norm in an LSTM", "LSTM",
         "GRU", "attention", "traced"],
    )  # fmt: skip
    def test_output_and_gradient_are_those_of_the_module(self, name):
        torch.manual_seed(0)
        net = self.nets()[name]
        net(X)  # a norm by hook holds a tensor of its last graph
        net.eval()
        before = state(net)
        twin = Twin(net)
        expected = torch.autograd.grad(net(X).square().mean(), list(net.parameters()))
        params = {key: p.detach().clone().requires_grad_() for key, p in twin.module.named_parameters()}
        assert list(params) == [key for key, _ in net.named_parameters()]
        for _ in range(2):
            output = torch.func.functional_call(twin.module, params, (X,))
            found = torch.autograd.grad(output.square().mean(), list(params.values()))
            twin.forget()
            assert torch.equal(output, net(X))
            assert all(map(torch.equal, found, expected))
        assert not twin.hidden_parameters
        assert state(net) == {**before, **{k: v for k, v in state(net).items() if k.startswith("tensors")}}

    def test_parameters_share_storage_and_buffers_do_not(self):
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        net[0].bias.requires_grad_(False)
        twin = Twin(net)
        for name, parameter in net.named_parameters():
            alias = twin.module.get_parameter(name)
            assert alias is not parameter
            assert alias.data_ptr() == parameter.data_ptr()
            assert alias.requires_grad == parameter.requires_grad
        for name, buffer in net.named_buffers():
            assert twin.module.get_buffer(name).data_ptr() != buffer.data_ptr()

    def test_later_training_shows_in_the_twin(self):
        net = nn.Linear(3, 2)
        twin = Twin(net)
        with torch.no_grad():
            net.weight.add_(1)
        assert torch.equal(twin.module(X), net(X))

    def test_tied_weights_stay_tied(self):
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        net[2].weight = net[0].weight
        twin = Twin(net).module
        assert twin[2].weight is twin[0].weight
        assert len(list(twin.parameters())) == 3

    @pytest.mark.parametrize("make", [list, dict, set, OrderedDict, deque])
    def test_a_shared_empty_container_stays_shared_and_is_empty_again_after_a_pass(self, make):
        net = Net()
        net.kept = net.layer.kept = make()
        twin = Twin(net)
        assert twin.module.kept is twin.module.layer.kept
        fill = {list: list.append, deque: deque.append, set: set.add}.get(make, lambda kept, x: kept.update(x=x))
        fill(twin.module.kept, 1)
        assert len(twin.module.kept) == 1
        assert len(net.kept) == 0
        twin.forget()
        assert len(twin.module.kept) == 0

    def test_other_buffers_take_the_places_of_those_of_the_root_and_of_tied_ones(self):
        net = Net()
        net.register_buffer("shift", torch.zeros(2))
        net.layer.register_buffer("scale", torch.ones(2))
        net.register_buffer("same_scale", net.layer.scale)
        twin = Twin(net)
        other = {name: torch.full((2,), 3.0) for name, _ in net.named_buffers()}
        twin.use(other)
        root = twin.module
        assert root.shift is other["shift"]
        assert root.same_scale is root.layer.scale is other["same_scale"]
        twin.forget()
        assert torch.equal(root.shift, torch.zeros(2))
        assert torch.equal(root.same_scale, torch.ones(2))

    def test_a_module_in_two_places_stays_one(self):
        layer = nn.Linear(3, 3)
        twin = Twin(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})).module
        assert twin["a"] is twin["b"][0]

    def test_references_to_parameters_and_submodules_lead_into_the_twin(self):
        net = Net()
        net.penalised = [net.layer.weight]
        net.parts = {"layer": net.layer}
        net.layer.up = [net]
        twin = Twin(net)
        assert twin.module.penalised[0] is twin.module.layer.weight
        assert twin.module.parts["layer"] is twin.module.layer
        assert twin.module.layer.up[0] is twin.module
        assert not twin.hidden_parameters

    @pytest.mark.parametrize("place", ["list", "dict", "config", "attribute", "closure", "recurrent"])
    def test_references_to_parameters_follow_the_tensors_in_use(self, place):
        net = Net()
        weight = net.layer.weight
        net.recurrent = nn.LSTM(3, 3)
        net.config = Config(values=[1, 2], a=weight)
        net.holder = SimpleNamespace(list=[weight], dict={"a": weight}, attribute=weight, closure=lambda: weight)
        get = {
            "list": lambda net: net.holder.list[0],
            "dict": lambda net: net.holder.dict["a"],
            "config": lambda net: net.config["a"],
            "attribute": lambda net: net.holder.attribute,
            "closure": lambda net: net.holder.closure(),
            "recurrent": lambda net: net.recurrent._flat_weights[0],
        }[place]
        twin = Twin(net)
        params = {name: torch.full_like(p, 2.0) for name, p in twin.module.named_parameters()}
        alias = get(twin.module)
        twin.use(params)
        assert (get(twin.module) == 2).all()
        twin.forget()
        assert get(twin.module) is alias
        assert (get(net) != 2).all()
        twin.use({"layer.bias": params["layer.bias"]})
        assert get(twin.module) is alias

    def test_building_and_running_costs_no_copy_of_the_weights(self):
        net = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(8)))  # 32 MB
        net[0].data = [np.zeros(2**27, dtype=np.uint8)]  # 128 MB, never touched
        twin = Twin(net)
        assert [p.data_ptr() for p in twin.module.parameters()] == [p.data_ptr() for p in net.parameters()]
        assert np.shares_memory(twin.module[0].data[0], net[0].data[0])
        with pytest.raises(ValueError, match="read-only"):
            twin.module[0].data[0][0] = 1

    def test_the_twin_goes_with_its_last_user(self):
        net = fitted(Net())
        twin = Twin(net)
        twin.module.training_step(X, 0)
        twin.module.optimizers()
        gone = weakref.ref(twin.module)
        gc.disable()
        try:
            del twin
            assert gone() is None
        finally:
            gc.enable()


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


class First(nn.Module):
    def __init__(self, net, repeat=1):
        super().__init__()
        self.net = net
        self.repeat = repeat

    def forward(self, x):
        return self.net(*[x] * self.repeat)[0]


class TestMetrics:
    @pytest.mark.parametrize("through", ["update", "forward"])
    def test_the_twins_metric_counts_for_itself(self, through):
        net = nn.Module()
        net.metric = MeanMetric()
        net.metric.update(torch.tensor([1.0, 3.0]))
        twin = Twin(net)
        run = twin.module.metric if through == "forward" else twin.module.metric.update
        run(torch.tensor(8.0))
        assert float(twin.module.metric.compute()) == 4.0
        assert float(net.metric.compute()) == 2.0
        assert net.metric.update_count == 1
        twin.forget()
        assert float(twin.module.metric.compute()) == 2.0

    def test_list_states_and_collections(self):
        metric = MetricCollection([MeanMetric(), MulticlassConfusionMatrix(2)])
        net = nn.Module()
        net.metrics = nn.ModuleList([metric])
        net.features = CatMetric()
        net.features.update(torch.ones(2))
        twin = Twin(net)
        twin.module.features.update(torch.zeros(3))
        twin.module.metrics[0]["MulticlassConfusionMatrix"].update(Y, Y)
        assert len(net.features.values) == 1
        assert net.metrics[0]["MulticlassConfusionMatrix"].confmat.sum() == 0
        assert len(twin.module.features.values) == 2
        twin.forget()
        assert len(twin.module.features.values) == 1

    def test_the_twins_metric_waits_for_no_other_process(self):
        net = nn.Module()
        net.metric = MeanMetric(dist_sync_on_step=True)
        twin = Twin(net).module
        assert not twin.metric.sync_on_compute
        assert not twin.metric.dist_sync_on_step
        assert net.metric.sync_on_compute


class CatMetric(MeanMetric):
    def __init__(self):
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, value):
        self.values.append(value)


class TestCompiled:
    def compiled_child(self):
        net = nn.Sequential(nn.Linear(3, 3), torch.compile(Tally(), backend="eager"))
        return net, net[1]._orig_mod, lambda twin: twin[1]._orig_mod

    def compiled_in_place(self):
        net = nn.Sequential(nn.Linear(3, 3), Tally())
        net[1].compile(backend="eager")
        return net, net[1], lambda twin: twin[1]

    def compiled_in_place_with_parametrization(self):
        net = Tally()
        parametrize.register_parametrization(net, "scale", Doubled())
        net.compile(backend="eager")
        return net, net, lambda twin: twin

    def compiled_whole(self):
        net = torch.compile(Tally(), backend="eager")
        return net, net._orig_mod, lambda twin: twin._orig_mod

    def compiled_for_lightning(self):
        net = from_compiled(torch.compile(TallyModule(), backend="eager"))
        return net, net.tally, lambda twin: twin.tally

    @pytest.mark.parametrize(
        "make",
        [
            "compiled_child",
            "compiled_in_place",
            "compiled_in_place_with_parametrization",
            "compiled_whole",
            "compiled_for_lightning",
        ],
    )
    @pytest.mark.parametrize("stance", ["default", "force_eager"])
    def test_running_the_twin_runs_the_twin_alone(self, make, stance):
        net, tally, find = getattr(self, make)()
        names = [name for name, _ in net.named_parameters()]
        twin = Twin(net)
        copied = find(twin.module)
        assert copied is not tally
        assert [name for name, _ in twin.module.named_parameters()] == names
        with torch.compiler.set_stance(stance):
            output = twin.module(X)
            assert (tally.calls, copied.calls) == (0, 1)
            assert torch.equal(output, net(X))
            twin.forget()
            assert (tally.calls, copied.calls) == (1, 0)
            swapped = {name: torch.zeros_like(p) for name, p in twin.module.named_parameters()}
            assert not torch.func.functional_call(twin.module, swapped, (X,)).any()

    def test_compiled_training_step_is_replayed_on_the_twin(self):
        net = from_compiled(torch.compile(TallyModule(), backend="eager"))
        twin = Twin(net)
        twin.module.training_step(X, 0)
        assert (net.tally.calls, twin.module.tally.calls) == (0, 1)

    def test_the_compiled_original_goes_on_as_before(self):
        net = nn.Sequential(torch.compile(nn.Linear(3, 3), backend="eager"))
        expected = net(X)
        before = dict(vars(net[0]))
        Twin(net).module(X)
        assert vars(net[0]) == before
        assert torch.equal(net(X), expected)


class Tally(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.scale


class TallyModule(Net):
    def __init__(self):
        super().__init__()
        self.tally = Tally()

    def forward(self, x):
        return self.tally(x)


class TestEvalMode:
    def test_the_twin_is_in_eval_mode_and_says_what_was_trained(self):
        net = nn.Sequential(OrderedDict(a=nn.BatchNorm1d(3), b=nn.BatchNorm1d(3).eval()))
        twin = Twin(net)
        assert not any(child.training for child in twin.module.modules())
        assert twin.trained == {"", "a"}
        assert net.a.training
        assert Twin(net.eval()).trained == {"", "a", "b"}

    @pytest.mark.parametrize("attached", [True, False])
    def test_the_modules_own_eval_mode_is_used(self, attached):
        class Own(Net):
            scaled = True

            def on_validation_model_eval(self):
                super().on_validation_model_eval()
                self.layer.train()
                self.scaled = False

        net = fitted(Own()) if attached else Own()
        twin = Twin(net)
        assert not twin.module.training
        assert twin.module.layer.training
        assert not twin.module.scaled
        assert net.scaled
        twin.forget()
        assert twin.module.layer.training
        assert not twin.module.scaled
        assert (twin.module._trainer is None) is not attached

    def test_with_a_trainer_the_default_reaches_the_twin_and_not_the_model(self):
        class Explicit(Net):
            def on_validation_model_eval(self):
                self.trainer.model.eval()
                self.trainer.strategy.model.mark = 1
                self.trainer.lightning_module.mark = 2

        net = fitted(Explicit())
        twin = Twin(net.train())
        assert net.training
        assert not twin.module.training
        assert twin.module.mark == 2
        assert not hasattr(net, "mark")


class TestTrainerView:
    def test_everything_can_be_read(self, tmp_path):
        net = fitted(Net(), logger=CSVLogger(tmp_path, name="run", version=3), max_steps=2)
        twin, real = Twin(net), net.trainer
        module = twin.module
        view = module.trainer
        assert isinstance(view, L.Trainer)
        assert module.current_epoch == real.current_epoch
        assert module.global_step == real.global_step == 2
        assert view.max_steps == 2
        assert isinstance(module.logger, CSVLogger)
        assert (module.logger.name, module.logger.version) == ("run", 3)
        assert module.logger.log_dir == real.logger.log_dir
        assert module.lr_schedulers().get_last_lr() == net.lr_schedulers().get_last_lr()
        [group], [real_group] = module.optimizers().param_groups, net.optimizers().param_groups
        assert {**group, "params": 0} == {**real_group, "params": 0}
        assert group["params"][0] is module.layer.weight
        assert module.optimizers().optimizer.state[module.layer.weight]["step"] == 2

    def test_without_loggers_there_is_none(self):
        twin = Twin(fitted(Net()))
        module = twin.module
        assert module.logger is None
        assert module.loggers == []

    def test_the_data_module_is_doubled_with_its_datasets(self):
        class Data(L.LightningDataModule):
            def __init__(self):
                super().__init__()
                self.dataset = TensorDataset(X)
                self.reads = 0

            def train_dataloader(self):
                return DataLoader(X, batch_size=2)

        net, data = Net(), Data()
        net.data = data
        trainer().fit(net, datamodule=data)
        twin = Twin(net)
        module = twin.module
        module.trainer.datamodule.reads += 1
        assert module.data is module.trainer.datamodule
        assert (data.reads, module.data.reads) == (0, 1)
        assert module.data.dataset is not data.dataset
        assert module.data.trainer is module.trainer

    def test_nested_lightning_modules_see_the_view(self):
        class Outer(Net):
            def __init__(self):
                super().__init__()
                self.inner = Net()

        twin = Twin(fitted(Outer()))
        assert twin.module.inner.trainer is twin.module.trainer is twin.trainer

    def test_without_a_trainer_logging_and_counting_steps_work(self):
        class Alone(Net):
            def training_step(self, batch, batch_idx):
                self.log("loss", 1.0)
                self.log_dict({"a": 1.0})
                assert self.logger is None
                return self(batch).sum() + self.current_epoch + self.global_step + self.global_rank

        net = Alone()
        assert torch.equal(Twin(net).module.training_step(X, 0), net(X).sum())


class TestAttributes:
    def test_what_belongs_to_the_surroundings_is_shared_or_muted(self, tmp_path):
        net = Net()
        net.own_logger = CSVLogger(tmp_path, name="own")
        net.own_optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        module = Twin(net).module
        module.own_logger.log_metrics({"a": 1.0})
        module.own_logger.experiment.log_metrics({"a": 1.0}, step=0)
        module.own_logger.save()
        assert not list(tmp_path.rglob("*.csv"))
        before = net.layer.weight.clone()
        module.layer.weight.grad = torch.ones_like(before)
        module.own_optimizer.step()
        assert torch.equal(net.layer.weight, before)

    def test_experiments_of_loggers_are_muted(self, tmp_path):
        from torch.utils.tensorboard import SummaryWriter

        net = Net()
        with SummaryWriter(tmp_path) as net.writer:
            sizes = {path: path.stat().st_size for path in tmp_path.iterdir()}
            writer = Twin(net).module.writer
            writer.add_scalar("a", 1.0, 0)
            writer.flush()
            net.writer.flush()
            assert {path: path.stat().st_size for path in tmp_path.iterdir()} == sizes

    def test_written_files_are_left_alone(self, tmp_path):
        net = Net()
        with (tmp_path / "log.txt").open("w") as net.file, (tmp_path / "log.bin").open("wb") as net.binary:
            module = Twin(net).module
            module.file.write("line")
            module.binary.write(b"line")
            assert (net.file.tell(), net.binary.tell()) == (0, 0)
        with tempfile.NamedTemporaryFile() as net.temporary:
            del module
            Twin(net)
            assert tmp_path.exists()
            net.temporary.write(b"still there")

    @pytest.mark.parametrize(
        ("make", "kind"),
        [(lambda: (i for i in range(9)), "generator"), (lambda: iter(DataLoader(X)), "_SingleProcessDataLoaderIter"),
         (lambda: itertools.chain(iter(DataLoader(X))), "_SingleProcessDataLoaderIter")],
    )  # fmt: skip
    def test_reading_from_what_cannot_be_copied_is_an_error_that_names_loss_fn(self, make, kind):
        net = Net()
        net.stream = make()
        module = Twin(net).module
        with pytest.raises(MisconfigurationException, match=rf"reads from stream.*{kind}.*pass loss_fn="):
            next(module.stream)
        next(net.stream)

    def test_what_an_old_cython_compiled_is_copied_though_its_type_names_no_module(self):
        class Compiled:
            __module__ = property(lambda self: "somewhere")

        net = Net()
        net.part = Compiled()
        net.part.count = 0
        Twin(net).module.part.count += 1
        assert net.part.count == 0

    def test_an_iterator_that_can_be_copied_goes_its_own_way(self):
        net = Net()
        net.stream = itertools.cycle([1, 2])
        assert next(Twin(net).module.stream) == 1
        assert next(net.stream) == 1

    @pytest.mark.parametrize(
        ("hide", "path"),
        [
            (lambda net, p: setattr(net, "extra", [p]), r"extra[0]"),
            (lambda net, p: setattr(net.layer, "extra", {"a": (p,)}), r"layer.extra['a'][0]"),
            (lambda net, p: setattr(net, "nets", [nn.ParameterList([p])]), r"nets[0].0"),
            (lambda net, p: net.layer.register_forward_hook(lambda *_: p), r"layer._forward_hooks"),
        ],
    )
    def test_hidden_parameters_are_found_and_say_where_they_are(self, hide, path):
        net, parameter = Net(), nn.Parameter(torch.ones(2))
        hide(net, parameter)
        twin = Twin(net)
        [(found, copied)] = twin.hidden_parameters.items()
        assert found.startswith(path)
        assert torch.equal(copied, parameter)
        assert copied.data_ptr() != parameter.data_ptr()

    def test_wandbs_own_hooks_do_not_report_passes_of_the_twin(self):
        def hook(*_):
            raise AssertionError

        hook.__module__ = "wandb.integration.torch.wandb_torch"
        net = Net()
        net.layer.register_forward_hook(hook)
        Twin(net).module(X)


class TestErrors:
    def test_lazy_module(self):
        with pytest.raises(ValueError, match=r"'0.weight' is not initialised: run one batch"):
            Twin(nn.Sequential(nn.LazyLinear(2)))
        with pytest.raises(ValueError, match="running_mean"):
            Twin(nn.LazyBatchNorm1d(affine=False))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_scripted_module(self):
        expected = r"RecursiveScriptModule at '0' can't be doubled \(.*\): script or trace it after training, or pass"
        with pytest.raises(CopyError, match=expected):
            Twin(nn.Sequential(torch.jit.script(nn.Linear(2, 2))))
        with pytest.raises(CopyError, match=r"can't be doubled .*: script or trace it after training"):
            Twin(nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))))

    def test_module_that_refuses_to_be_taken_apart(self):
        class Sealed(nn.Linear):
            def __getstate__(self):
                raise RuntimeError("sealed")

        with pytest.raises(
            CopyError, match=r"the Sealed at '0' can't be doubled \(RuntimeError: sealed\): let its __getstate__"
        ):
            Twin(nn.Sequential(Sealed(2, 2)))

    @pytest.mark.parametrize("frozen", [True, False])
    def test_writing_to_a_parameter_does_not_pass_unnoticed(self, frozen):
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(not frozen))
        twin = Twin(net)
        with torch.no_grad():
            twin.module[1].weight.mul_(0.9)
        with pytest.raises(MisconfigurationException, match=r"wrote to parameter '1.weight'.*pass loss_fn="):
            twin.forget()

    def test_a_module_of_inference_mode_can_be_doubled(self):
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        with torch.inference_mode():
            net[1].running_mean = torch.zeros(3)
            net.last = net(X)
            twin = Twin(net)
        twin.module(X + twin.module.last).sum().backward()
        twin.forget()


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_of_a_module_are_doubled(layout):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("adjacency", torch.eye(4).to_sparse(layout=layout))

        def forward(self, x):
            return torch.sparse.mm(self.adjacency, self.layer(x))

    net = Graph()
    twin = Twin(net)
    for _ in range(2):
        torch.testing.assert_close(twin.module(X), net(X))
        twin.forget()


@pytest.mark.parametrize("given", [None, {"delta": torch.zeros(3)}], ids=["one process", "of the first process"])
def test_a_buffer_that_requires_gradients_does_so_in_every_pass(given):
    class Adversarial(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("delta", torch.zeros(3, requires_grad=True))
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x):
            assert not self.scale.requires_grad
            self.layer(x + self.delta).square().sum().backward(inputs=[self.delta])
            with torch.no_grad():
                self.delta += 0.1 * self.delta.grad
            self.scale.requires_grad_()
            return self.layer(x + self.delta)

    net = Adversarial()
    twin = Twin(net, given)
    outputs = []
    for _ in range(3):
        outputs.append(twin.module(X))
        twin.forget()
        assert twin.module.delta.requires_grad
        assert twin.module.delta.grad is None
        assert not twin.module.delta.any()
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert net.delta.requires_grad
    assert not net.delta.any()


def test_a_muted_logger_counts_as_there(tmp_path):
    assert bool(Muted(CSVLogger(tmp_path)))
    assert not Muted([])
