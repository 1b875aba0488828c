"""While a probe measures nothing is logged, whichever way the run is held; other threads go on."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger
from torch.utils.tensorboard import SummaryWriter

from lightning_probes.probing.isolation import muting
from lightning_probes.probing.isolation.muting import muted
from tests import wandb_offline


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(dir=tmp_path) as run:
        yield run


WAYS = {
    "wandb.log": lambda run: wandb.log({"marked": 1}),
    "wandb.run.log": lambda run: wandb.run.log({"marked": 1}),
    "a run kept": lambda run: run.log({"marked": 1}),
    "log imported by name": lambda run: run.kept_log({"marked": 1}),
    "alert": lambda run: wandb.alert("marked", "now"),
    "alert imported by name": lambda run: run.kept_alert("marked", "now"),
    "wandb.summary": lambda run: wandb.summary.update({"marked": 1}),
    "run.summary": lambda run: run.summary.__setitem__("marked", 1),
    "summary, an attribute": lambda run: setattr(run.summary, "marked", 1),
    "summary kept": lambda run: run.kept_summary.update({"marked": 1}),
    "wandb.config": lambda run: wandb.config.update({"marked": 1}),
    "run.config": lambda run: run.config.__setitem__("marked", 1),
    "define_metric": lambda run: wandb.define_metric("marked", step_metric="other"),
    "a table": lambda run: run.log({"marked": wandb.Table(columns=["marked"], data=[[1]])}),
}


@pytest.mark.parametrize("way", WAYS)
def test_wandb_receives_nothing_while_muted_and_everything_afterwards(way, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = []
    for mute in (True, False):
        root = tmp_path / str(mute)
        root.mkdir()
        with wandb.init(dir=root) as run:
            kept = SimpleNamespace(
                log=run.log, summary=run.summary, config=run.config,
                kept_log=wandb.log, kept_alert=wandb.alert, kept_summary=wandb.summary,
            )  # fmt: skip
            if mute:
                with muted():
                    WAYS[way](kept)
                    assert run.step == 0
                assert "marked" not in run.config
            else:
                with muted():
                    pass
                WAYS[way](kept)
        [written] = wandb_offline.read_all(root)
        found.append("marked" in repr(vars(written)))
    assert found == [False, True]


def test_other_threads_go_on_logging(run, tmp_path):
    with muted():
        thread = threading.Thread(target=lambda: run.log({"other": 1}))
        thread.start()
        thread.join()
        run.log({"own": 1})
    run.finish()
    [written] = wandb_offline.read_all(tmp_path)
    assert [set(row) & {"own", "other"} for row in written.history] == [{"other"}]


def test_hooks_that_autograd_runs_in_a_thread_of_its_own_are_muted(run, tmp_path):
    threads = set()

    class Deep(torch.autograd.Function):
        """Goes on in another thread where it is nested deep enough, as gradients on a GPU always do."""

        @staticmethod
        def forward(ctx, x, depth):
            ctx.depth = depth
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            threads.add(threading.get_ident())
            run.log({"own": 1})
            if ctx.depth:
                with torch.enable_grad():
                    Deep.apply(torch.ones(1, requires_grad=True), ctx.depth - 1).backward()
            return gradient, None

    with muted():
        Deep.apply(torch.ones(1, requires_grad=True), 70).backward()
    assert len(threads) > 1
    run.finish()
    [written] = wandb_offline.read_all(tmp_path)
    assert written.history == []


def test_nested_and_broken_off_measurements_leave_everything_as_it_was(run):
    before = {name: dict(vars(owner)) for name, owner in (("run", type(run)), ("module", wandb))}

    @muted()
    def measurement():
        with muted():
            pass
        assert not wandb.log({"own": 1})
        assert run.step == 0
        raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        measurement()
    assert {name: dict(vars(owner)) for name, owner in (("run", type(run)), ("module", wandb))} == before
    assert muting._patched == []


def test_what_is_not_imported_is_not_looked_for(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with muted():
        assert "wandb" not in sys.modules


def test_writers_of_tensorboard_are_muted(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.flush()
        add, file = writer.add_scalar, writer._get_file_writer()
        sizes = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        with muted():
            writer.add_scalar("told", 1.0, 0)
            add("told", 1.0, 0)
            writer.add_scalars("told", {"a": 1.0}, 0)
            writer.add_text("told", "now")
        file.flush()
        assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == sizes
        writer.add_scalar("told", 1.0, 0)
        file.flush()
        assert sum(path.stat().st_size for path in tmp_path.rglob("*")) > sum(sizes.values())


def test_loggers_of_lightning_are_muted(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    with muted():
        logger.log_metrics({"marked": 1.0}, step=0)
        logger.experiment.log_metrics({"marked": 1.0}, step=0)
        logger.save()
    assert logger.experiment.metrics == []
    logger.log_metrics({"marked": 1.0}, step=0)
    assert len(logger.experiment.metrics) == 1


def test_functions_of_mlflow_are_muted_and_answer_to_whatever_is_asked_of_them(monkeypatch):
    told = []
    client = type("MlflowClient", (), {"log_metric": lambda self, *told_of: told.append(told_of)})
    fluent, package = ModuleType("mlflow.tracking.fluent"), ModuleType("mlflow")
    fluent.log_metric = package.log_metric = lambda key, value, step=None: client().log_metric("run", key, value)
    package.start_run = lambda **_: told.append("start")
    package.active_run = lambda: "active"
    clients = ModuleType("mlflow.tracking.client")
    clients.MlflowClient = client
    for module in (package, fluent, clients):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    kept = package.log_metric
    with muted():
        package.log_metric("loss", 1.0)
        kept("loss", 1.0)
        client().log_metric("run", "loss", 1.0)
        with package.start_run(nested=True) as run:
            assert not run.info.run_id
        assert package.active_run() == "active"
    assert told == []
    package.log_metric("loss", 1.0)
    assert told == [("run", "loss", 1.0)]


def test_a_hook_that_returns_what_its_logger_says_leaves_the_output_of_its_layer(tmp_path):
    writer, layer = SummaryWriter(tmp_path), torch.nn.Linear(2, 1)
    layer.register_forward_hook(lambda module, inputs, output: writer.add_histogram("output", output, 0))
    with muted():
        assert layer(torch.ones(3, 2)).shape == (3, 1)
