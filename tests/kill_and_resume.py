"""A fit that may be killed at any moment and started again, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_probes import AtCheckpoints, AtFitEnd, EveryNSteps, FisherPenalty, GradientNorms, LogSpacedSteps
from lightning_probes.callbacks.paths import loss_plane
from lightning_probes.probing.scheduled import Scheduled
from tests.complete import network
from tests.resumable import resumable
from tests.tester import EVERY, fit, probe

DONE = "done.json"


# With each kind of state that a break may lose.
KINDS = ("fisher", "interpolation", "cka", "sharpness", "connectivity", "plane", "dropout")


def probes() -> list[Scheduled]:
    when = [LogSpacedSteps(3), AtCheckpoints(1.0), AtFitEnd()]
    penalty = FisherPenalty(0.05, every=3, schedule=when)
    return [*(probe(kind, num_samples=16, schedule=when) for kind in KINDS), penalty]


def everyone() -> list[Scheduled]:
    when = [EveryNSteps(5), AtCheckpoints(1.0), AtFitEnd()]
    later = [probe(kind, num_samples=16, schedule=when) for kind in EVERY if kind not in KINDS]
    return [*later, GradientNorms(schedule=EveryNSteps(2))]


class Moments(L.Callback):
    """Tells the moments of a fit at which to be killed; put first, so that it speaks before the probes."""

    def __init__(self, at: str | None) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.at is None:
            return
        moment, _, step = self.at.partition(" ")
        if trainer.global_step >= int(step):
            {"measuring": self.die_measuring, "saving": self.die_saving, "training": die}[moment](trainer)

    def die_measuring(self, trainer: L.Trainer) -> None:
        """In the pass over a micro-batch."""
        trainer.lightning_module.forward = die  # which the twin copies

    def die_saving(self, trainer: L.Trainer) -> None:
        """When the checkpoint is being written."""
        trainer.strategy.checkpoint_io.save_checkpoint = die


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Meets(L.Callback):
    """Waits at a step until another run is there too."""

    def __init__(self, step: int, barrier: Any) -> None:
        self.step, self.barrier = step, barrier

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.barrier.wait(60)


def fit_until_killed(
    directory: Path, at: str | None = None, own: str = "", meets: Any = None, all_kinds: bool = False
) -> None:
    """Go on from the last checkpoint, if there is one.

    Args:
        directory: Of the run.
        at: Be killed at a moment of `Moments`, such as "measuring 7".
        own: Folder in it for checkpoints from now on; of others the one after step 4 is gone on from.
        meets: A barrier at which to wait for another run after step 6.
        all_kinds: Whether to attach the other kinds of probes and a monitor, on a network that they all apply to.
    """
    torch.set_num_threads(1)
    folder = directory / own
    saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1, save_last=True)
    known = [folder / "last.ckpt", *([directory / "step=4.ckpt"] if own else [])]
    measuring: Sequence[Scheduled] = everyone() if all_kinds else probes()
    last = next((path for path in known if path.exists()), None)
    meeting = [] if meets is None else [Meets(6, meets)]
    run = fit(
        partial(resumable, network) if all_kinds else resumable, [Moments(at), *meeting, *measuring, saves], directory,
        enable_checkpointing=True, max_epochs=3, ckpt_path=last,
    )  # fmt: skip
    content = {
        "history": {each.name: each.history for each in measuring},
        "summary": {each.name: each.summary for each in measuring},
        "weights": [float(p.detach().double().sum()) for p in run.module.parameters()],
    }
    (folder / DONE).write_text(json.dumps(content))


def plane_until_killed(directory: Path, directions: Any, points: int | None) -> None:
    """Measure a plane at steps 4, 8 and 12, or be killed at a point of the grid of the second; go on if there was one.

    Args:
        directory: Of the run.
        directions: Of the plane.
        points: How many points of the second grid to measure before.
    """
    torch.set_num_threads(1)
    last = directory / "last.ckpt"
    saves = ModelCheckpoint(directory, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True)
    plane = probe("plane", directions=directions, resolution=5, num_samples=16, schedule=EveryNSteps(4, start=4))
    if points is not None:
        _kill_in_a_grid(points)
    fit(
        resumable, [plane, saves], directory, enable_checkpointing=True, max_epochs=3, max_steps=14,
        ckpt_path=last if last.exists() else None,
    )  # fmt: skip
    trail = plane.progress.log.record.trail["plane/loss"]
    surfaces = [surface.values.ravel().tolist() for _, surface in trail]
    (directory / DONE).write_text(json.dumps({"history": plane.history, "surfaces": surfaces}))


def _kill_in_a_grid(points: int) -> None:
    """Be killed after so many points of the grid at step 8."""
    landscape = loss_plane.landscape

    def until(view: Any, grid: Any, recalibrate: bool, show: Any) -> Any:
        def shown(done: int) -> None:
            show(done)
            if view.step == 8 and done == points:
                die()

        return landscape(view, grid, recalibrate, shown)

    loss_plane.landscape = until


class DiesLater(L.Callback):
    """Dies a moment after the measurement of a step, before its batch."""

    def __init__(self, step: int, seconds: float) -> None:
        self.step = step
        self.seconds = seconds

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            time.sleep(self.seconds)
            die()


def log_and_die(directory: Path, step: int) -> None:
    """Report to W&B (offline) and CSV until the measurement of a step, then be killed."""
    torch.set_num_threads(1)
    os.environ.pop("WANDB_SERVICE", None)  # of whichever test forked the server of processes, and perhaps gone
    loggers = [WandbLogger(save_dir=directory), CSVLogger(directory, name="", version="csv")]
    measuring = probe("fisher", schedule=EveryNSteps(1))
    fit(resumable, [measuring, DiesLater(step, seconds=2.5)], directory, logger=loggers)
