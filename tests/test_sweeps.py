"""Sweeps with real agents, against a server of our own: in processes of their own, and in threads of this one."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import wandb
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_probes import EveryNSteps, FisherTrace, InitInterpolation, LayerCKA, Probe, Sharpness
from lightning_probes.probing.isolation.twin import Twin
from tests.test_documents import python_blocks
from tests.wandb_backend import ENTITY, Backend, ServerRun, Sweep

EXAMPLE = Path(__file__).parents[1] / "examples" / "sweep"
SWEEPS = sorted(EXAMPLE.glob("sweep-*.yaml"))
PROJECT = "sweeps"
TRIALS = 10
TINY = (  # one batch of 64 samples an epoch
    "--data.num_samples=80", "--data.batch_size=64", "--model.width=4", "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1", "--trainer.enable_checkpointing=false",
)  # fmt: skip
ENDLESS = {"trainer.max_epochs": -1}
STILL = 1e-6  # a learning rate at which no probe has anything to object to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a user would copy it."""
    return Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("example") / "sweep"))


def start(server: Backend, config: dict[str, Any], stop_when: Callable[[ServerRun], bool] | None = None) -> Sweep:
    sweep = server.sweeps[wandb.sweep(config, project=PROJECT)]
    if stop_when is not None:
        sweep.stop_when = stop_when
    return sweep


def endless_after(events: int) -> Callable[[ServerRun], bool]:
    """Stop a trial that would never end, once this many measurements have arrived."""
    return lambda run: run.settings().items() >= ENDLESS.items() and len(run.rows("fisher/trace")) >= events


def measured(run: ServerRun) -> list[int]:
    return [row["trainer/global_step"] for row in run.rows("fisher/trace")]


# -- the files of the example ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_files_minimise_a_plain_scalar_and_stop_trials_early_on_it(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["method"] == path.stem.removeprefix("sweep-")
    assert config["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert config["early_terminate"]["type"] == "hyperband"
    assert config["command"][-1] == "${args}"
    assert config["program"] == "train.py"


def test_probes_of_the_base_file_end_a_trial_and_the_command_line_adds_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    added = ["--trainer.callbacks+=lightning_probes.LayerCKA", "--trainer.callbacks.num_samples=16"]
    cli = train_module(folder).main(["validate", "--config", "base.yaml", *TINY, "--trainer.logger=false", *added])
    probes = {probe.name: probe for probe in cli.trainer.callbacks if isinstance(probe, Probe)}
    assert {name: probe.on_flag for name, probe in probes.items()} == {
        "fisher": "stop", "sharpness": "stop", "cka": "log",
    }  # fmt: skip
    fisher, sharpness = probes["fisher"], probes["sharpness"]
    assert isinstance(fisher, FisherTrace)
    assert fisher.explosion_factor is not None
    assert isinstance(sharpness, Sharpness)
    assert sharpness.instability_threshold == 2.0
    assert probes["cka"].num_samples == 16


def train_module(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", folder / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["train"] = importlib.util.module_from_spec(spec)  # where jsonargparse looks types up
    spec.loader.exec_module(module)
    return module


# -- `wandb agent`: a process a trial ----------------------------------------------------------------------------------


# The agent as it is, but for the five seconds that it waits between two looks at its trial.
AGENT = "from wandb.wandb_agent import Agent; Agent.POLL_INTERVAL = 0.5; from wandb.cli.cli import cli; cli()"


@pytest.fixture(scope="module")
def grid(wandb_server: Backend, folder: Path) -> Sweep:
    """Three trials: one that trains to its end, and two that have none: the server stops one, and a probe the other."""
    config = yaml.safe_load((folder / "sweep-random.yaml").read_text()) | {"method": "grid", "run_cap": 3}
    config["command"][-1:] = [*TINY, "${args}"]
    config["parameters"] = {"model.lr": {"values": [STILL, 30.0]}, "trainer.max_epochs": {"values": [-1, 3]}}
    sweep = start(wandb_server, config, lambda run: run.settings()["model.lr"] == STILL and endless_after(6)(run))
    # The agent calls `python`, which shall be this one.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "false"}
    command = [sys.executable, "-c", AGENT, "agent", f"{ENTITY}/{PROJECT}/{sweep.name}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return sweep


def test_agent_goes_through_a_grid_in_processes(grid: Sweep) -> None:
    assert [(run.settings()["model.lr"], run.settings()["trainer.max_epochs"]) for run in grid.trials] == [
        (STILL, -1), (STILL, 3), (30.0, -1),
    ]  # fmt: skip
    assert grid.state == "FINISHED"
    assert {run.sweep for run in grid.trials} == {grid.name}
    _, run, _ = grid.trials
    assert run.state == "finished"
    assert [row["trainer/global_step"] for row in run.rows("train/loss")] == [0, 1, 2]
    assert [len(run.rows(key)) for key in ("val/loss", "fisher/trace", "sharpness/lambda_max")] == [3, 3, 4]
    assert "probes/stopped_by" not in run.summary


def test_trial_that_a_probe_ends_has_its_goal_and_says_why(grid: Sweep) -> None:
    _, _, run = grid.trials
    assert run.state == "finished"
    raised = [alert["title"] for alert in run.alerts]
    assert "sharpness/flag/unstable" in raised
    assert run.summary["probes/stopped_by"] in raised
    assert run.rows("val/loss")[-1]["trainer/global_step"] == run.rows("train/loss")[-1]["trainer/global_step"]


def test_trial_that_the_server_stops_keeps_what_was_measured_and_the_agent_goes_on(grid: Sweep) -> None:
    run, after, _ = grid.trials
    assert run.told_to_stop
    assert run.exit_code is not None
    assert measured(run)[:6] == [0, 1, 2, 3, 4, 5]
    assert "sharpness/lambda_max" in run.summary
    assert run.summary["fisher/trace_max"] == max(row["fisher/trace"] for row in run.rows("fisher/trace"))
    assert after.state == "finished"


# -- `wandb.agent(function=...)`: a thread a trial, all in this process ------------------------------------------------


def run_agent(sweep: Sweep, function: Callable[[], None], count: int) -> None:
    from wandb.agents.pyagent import Agent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "HEARTBEAT_SLEEP_SECONDS", 0.1)
        wandb.agent(sweep.name, function, entity=ENTITY, project=PROJECT, count=count)


class Allocated(ctypes.Structure):
    """What `mallinfo2` of glibc returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def allocated_bytes() -> int:
    """Memory in use, tensors included; 0 without glibc 2.33.

    The size of the process would also count free memory that the allocator keeps for each thread, and that depends on
    the number of PyTorch's threads and on what the process did before.
    """
    read = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if read is None:
        return 0
    read.restype = Allocated
    found = read()
    return int(found.uordblks + found.hblkhd)


def state_of_process() -> dict[str, int]:
    """What a trial may leave behind, after the garbage was collected."""
    gc.collect()
    kinds = {"probes": Probe, "twins": Twin, "trainers": Trainer, "modules": LightningModule, "loggers": WandbLogger}
    alive = Counter(name for value in gc.get_objects() for name, kind in kinds.items() if issubclass(type(value), kind))
    hooks = [value for name, value in vars(torch.nn.modules.module).items() if name.endswith("_hooks")]
    return {
        **{name: alive[name] for name in kinds},
        "global hooks": sum(map(len, hooks)),
        "threads": threading.active_count(),
        "open files": len(os.listdir("/dev/fd")),
        "bytes": allocated_bytes(),
    }


def settled(before: dict[str, int]) -> dict[str, int]:
    """The state, once the server has seen that the connections of the trial before are closed."""
    deadline = time.monotonic() + 20
    while True:
        state = state_of_process()
        growing = any(state[key] > before[key] for key in ("threads", "open files"))
        if not growing or time.monotonic() > deadline:
            return state
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ten(wandb_server: Backend, folder: Path) -> tuple[Sweep, list[dict[str, int]]]:
    """Ten random trials in one process with all four probes, and the state in which each of them found the process."""
    train, states = train_module(folder), []

    def trial() -> None:
        # The first trial starts what a process needs once, such as threads of PyTorch.
        states.append(settled(states[1]) if len(states) > 1 else state_of_process())
        logger = WandbLogger(save_dir=folder)
        probes = [
            FisherTrace(num_samples=32, schedule=EveryNSteps(1)),
            InitInterpolation(num_samples=32, num_alphas=3),
            LayerCKA(num_samples=32),
            Sharpness(num_samples=32),
        ]
        trainer = Trainer(
            max_epochs=4, logger=logger, callbacks=probes, log_every_n_steps=1, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = train.ConvNet(lr=logger.experiment.config["model.lr"], width=4)
        trainer.fit(module, train.MNIST1D(batch_size=64, num_samples=80))

    config = yaml.safe_load((folder / "sweep-random.yaml").read_text()) | {"run_cap": TRIALS}
    sweep = start(wandb_server, config)
    run_agent(sweep, trial, TRIALS)
    return sweep, states


def test_agent_runs_ten_random_trials_in_threads(ten: tuple[Sweep, list[dict[str, int]]]) -> None:
    sweep, _ = ten
    assert len(sweep.trials) == TRIALS
    assert len({run.settings()["model.lr"] for run in sweep.trials}) == TRIALS
    for run in sweep.trials:
        assert run.state == "finished"
        assert measured(run) == [0, 1, 2, 3]
        assert len(run.rows("val/loss")) == 4
        assert run.summary["fisher/trace_max"] == max(row["fisher/trace"] for row in run.rows("fisher/trace"))
        assert run.rows("fisher/trace_max") == []
        assert set(run.settings()["probes"]) == {"fisher", "interpolation", "cka", "sharpness"}


def test_nothing_leaks_from_trial_to_trial(ten: tuple[Sweep, list[dict[str, int]]]) -> None:
    _, states = ten
    grown = {key: states[9][key] - value for key, value in states[2].items()}
    # Seven trials lie between the two. One may still be held from outside, as by Lightning or W&B; no second one.
    a_trial = {"probes": 4, "trainers": 1, "modules": 1, "loggers": 1}
    assert all(grown.pop(key) <= most for key, most in a_trial.items()), states
    grown.pop("bytes")
    assert all(more <= 0 for more in grown.values()), states


def test_memory_does_not_grow_by_more_than_wandb_keeps(ten: tuple[Sweep, list[dict[str, int]]]) -> None:
    """Which is less than a megabyte a run. A leak shows in every trial."""
    used = [state["bytes"] / 2**20 for state in ten[1][2:]]
    assert statistics.median(after - before for before, after in pairwise(used)) < 2, used


def test_thread_that_the_server_stops_keeps_what_was_measured_and_the_agent_goes_on(
    wandb_server: Backend, folder: Path
) -> None:
    main = train_module(folder).main

    def trial() -> None:
        epochs = wandb.init().config["trainer.max_epochs"]
        limits = [f"--trainer.max_epochs={epochs}", "--trainer.max_time=00:00:03:00"]  # should the stop get lost
        main(["fit", "--config", str(folder / "base.yaml"), *TINY, f"--model.lr={STILL}", *limits])

    config = {"method": "grid", "parameters": {"trainer.max_epochs": {"values": [-1, 3]}}}
    sweep = start(wandb_server, config, endless_after(6))
    run_agent(sweep, trial, 2)
    stopped, after = sweep.trials
    assert stopped.told_to_stop
    assert stopped.state == "failed", "W&B ends the thread by an error"
    assert measured(stopped)[:6] == [0, 1, 2, 3, 4, 5]
    assert stopped.summary["fisher/trace_max"] == max(row["fisher/trace"] for row in stopped.rows("fisher/trace"))
    assert after.state == "finished"
    assert measured(after) == [0, 1, 2]


def test_block_of_the_page_runs_trials_in_this_process(
    wandb_server: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_module(folder)
    whole = train.main
    monkeypatch.setattr(train, "main", lambda arguments: whole([*arguments[:3], *TINY, *arguments[3:]]))
    monkeypatch.chdir(folder)
    choices = {"model.lr": {"values": [STILL, 2 * STILL]}, "data.batch_size": {"values": [32]}}
    sweep = start(wandb_server, {"method": "grid", "parameters": choices})
    [block] = [block for block in python_blocks("docs/sweeps.md") if "ENTITY/PROJECT/ID" in block]
    exec(compile(block.replace("ENTITY/PROJECT/ID", f"{ENTITY}/{PROJECT}/{sweep.name}"), "docs/sweeps.md", "exec"), {})
    assert [(run.settings()["lr"], run.settings()["batch_size"]) for run in sweep.trials] == [
        (STILL, 32), (2 * STILL, 32),
    ]  # fmt: skip
    assert [run.state for run in sweep.trials] == ["finished", "finished"]
