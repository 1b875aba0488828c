"""Measure at the saved checkpoints of a finished run, as if the probes had been attached to it."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.fit_arguments import fit_arguments
from lightning_probes.probing.run.going_over import go_over
from lightning_probes.probing.run.progress import check_names
from lightning_probes.probing.run.saved import Checkpoints, found

__all__ = ["replay"]


def replay(
    probes: Sequence[Probe],
    module: LightningModule,
    checkpoints: Checkpoints,
    data: Any,
    logger: Any = None,
    *,
    trainer: Trainer | None = None,
    directory: str | PathLike[str] | None = None,
    keep: bool = True,
) -> None:
    """Measure at each saved checkpoint, in the order of the steps. `probe.history` and the loggers get the results.

    Each result equals the one that the probe would have measured at that step of the run, up to rounding. An iterative
    estimate starts from the previous checkpoint: if the run measured at other steps, it is equal up to its residual.
    Schedules do not matter: each probe measures at every checkpoint. The weights are those in the checkpoint, also if
    these are averages. If a part of the checkpoint is missing, such as the optimizer's state, the results that need it
    are absent, and a message reports this once.

    A replay that was killed continues where it stopped. A damaged checkpoint is reported and skipped. Checkpoints are
    loaded with `weights_only=True`, so no code in them is run.

    Args:
        probes: The probes.
        module: A module created with the same arguments as the trained one. Its weights are restored at the end.
        checkpoints: Paths, a pattern such as `"runs/demo/checkpoints/*.ckpt"`, or a folder. A probe that compares with
            the initialisation needs the checkpoint of step 0 among them, or `init_state`.
        data: The data of the run: a DataLoader, a Dataset, a LightningDataModule, or a dict such as
            `{"train": loader, "val": val_loader}`. Pass the module itself if it has its own `train_dataloader`.
        logger: One logger or several, as for a Trainer. Pass a new logger: values that an old one already has at these
            steps may be replaced.
        trainer: A Trainer with the settings of the run, such as `precision`, `gradient_clip_val` and devices. Its
            callbacks are not called. With several devices, its processes share the samples. None uses no clipping, and
            one process or those of torchrun.
        directory: The folder that keeps the measurements; by default the folder `replay` beside the checkpoints.
        keep: Whether to keep the measurements. With False, each call measures all checkpoints again.

    Raises:
        ValueError: If there are no checkpoints, or if they belong to another module or may run code.
        MisconfigurationException: If there are no probes, or two probes with the same name, or if the
            Trainer's strategy can't work.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_probes import FisherTrace
        >>> replay([FisherTrace()], BoringModel(), "runs/demo/checkpoints/*.ckpt", BoringModel().train_dataloader())
        Traceback (most recent call last):
        ValueError: checkpoints='runs/demo/checkpoints/*.ckpt' names no file: ...
    """
    paths = found(checkpoints)
    folder = paths[0].parent / "replay" if directory is None else Path(directory).absolute()
    if not probes or not all(isinstance(each, Probe) for each in probes):
        raise MisconfigurationException(
            "replay needs at least one probe, and only probes: pass probes=[FisherTrace(), ...] "
            "(monitors and interventions need training)"
        )
    check_names([probe.name for probe in probes])
    go_over(paths, probes, module, _data_of(data, module), folder if keep else None, trainer, logger)


def _data_of(data: Any, module: LightningModule) -> dict[str, Any]:
    """The data as arguments of `Trainer.fit`."""
    arguments = {} if data is module else fit_arguments(data)
    if data is not module and not arguments.keys() & {"datamodule", "train_dataloaders"}:
        raise MisconfigurationException(
            'replay needs the data that the run was trained on: pass data= that has it, such as {"train": loader}'
        )
    return arguments
