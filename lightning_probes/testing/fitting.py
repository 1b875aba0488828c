"""Fits of modules of the zoo, the same each time, with what happened in them written down step by step."""

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
    """Writes down every batch in order, gradients before every optimizer step, and what is there after every batch."""

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
    """A finished (or broken off) fit.

    Attributes:
        trainer: The Trainer.
        fit: The module and its data.
        recorder: What happened step by step.
        directory: What the run wrote is below it.
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
    """Fit what `make` makes, from the same seeds each time.

    Args:
        make: Makes a module and its data.
        callbacks: Probes, and whatever else is to be attached.
        directory: Where the run writes; the working directory by default.
        catch: An exception that `trainer.fit` may end in.
        ckpt_path: A checkpoint to go on from.
        kind: The class of the Trainer.
        drive: What to do with the Trainer, where that is not one `fit`.
        seed: Seeds the generators at the start; None leaves them as they are.
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
