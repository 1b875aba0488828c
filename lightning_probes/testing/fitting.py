"""Reproducible fits of the zoo's modules, with a record of every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from lightning_probes.testing.digests import digest
from lightning_probes.testing.surroundings import generators
from lightning_probes.testing.zoo import Fit


class Recorder(L.Callback):
    """Records each batch in order, the gradients before each optimizer step, and the state after each batch."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the batch."""
        self.steps.append(f"train batch {digest(batch)}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the weights, buffers, flags and generators."""
        weights, buffers = digest(list(pl_module.parameters())), digest(list(pl_module.buffers()))
        flags = [part.training for part in pl_module.modules()], [p.requires_grad for p in pl_module.parameters()]
        self.steps.append(
            f"weights {weights}, buffers {buffers}, flags {digest(flags)}, generators {digest(generators())}"
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the gradients."""
        self.steps.append(f"gradients {digest([p.grad for p in pl_module.parameters()])}")

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the batch and the generators."""
        self.steps.append(f"validation batch {dataloader_idx} {digest(batch)}, generators {digest(generators())}")


@dataclass(frozen=True)
class Run:
    """A finished or interrupted fit.

    Attributes:
        trainer: The Trainer.
        fit: The module and its data.
        recorder: The record of every step.
        directory: The folder that contains all files of the run.
    """

    trainer: L.Trainer
    fit: Fit
    recorder: Recorder
    directory: Path

    @property
    def module(self) -> L.LightningModule:
        """The module that was trained."""
        return self.fit.module


def fit(
    make: Callable[[], Fit],
    callbacks: Sequence[L.Callback] = (),
    directory: Path | None = None,
    catch: type[BaseException] | None = None,
    ckpt_path: Path | None = None,
    kind: Callable[..., Any] = L.Trainer,
    drive: Callable[[Any, Fit], Any] | None = None,
    seed: int | None = 7,
    **arguments: Any,
) -> Run:
    """Fit the module that `make` creates, from the same seeds each time.

    Args:
        make: Creates a module and its data.
        callbacks: Probes and other callbacks to attach.
        directory: The folder for the files of the run; by default the working directory.
        catch: An exception type that `trainer.fit` may raise.
        ckpt_path: A checkpoint to resume from.
        kind: The class of the Trainer.
        drive: A function to call with the Trainer and the fit, instead of `trainer.fit`.
        seed: The seed of all generators; None does not seed them.
        arguments: Further arguments of the Trainer.
    """
    directory = Path.cwd() if directory is None else directory
    if seed is not None:
        L.seed_everything(seed, verbose=False)
    made, recorder = make(), Recorder()
    defaults = {
        "max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "default_root_dir": directory,
    }  # fmt: skip
    trainer = kind(callbacks=[recorder, *callbacks], **{**defaults, **arguments})
    with suppress(*((catch,) if catch else ())):
        if drive is not None:
            drive(trainer, made)
        else:
            trainer.fit(made.module, **made.arguments(), ckpt_path=ckpt_path)
    return Run(trainer, made, recorder, directory)
