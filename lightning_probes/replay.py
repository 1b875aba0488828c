"""The same probes over the saved checkpoints of a finished run, as if they had been attached to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.going_over import go_over
from lightning_probes.probing.run.progress import check_names
from lightning_probes.probing.run.saved import Checkpoints, found

__all__ = ["replay"]

_NAMES = {"train", "val"}


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
    """Measure at each saved checkpoint, in the order of its steps; `probe.history` and the loggers have the results.

    A number is what the probe would have measured in the run at that step: to rounding, or within its residual for an
    iterative estimate. Each probe measures at every checkpoint, whatever its schedule. The weights are those that the
    checkpoint holds, averaged ones included. What a checkpoint lacks, such as the optimizer's state, is absent from the
    results, and that is said once.

    A replay that was killed goes on where it stopped. A damaged checkpoint is reported and passed over. Checkpoints are
    loaded with `weights_only=True`, so that no code in them is run.

    Args:
        probes: The probes.
        module: A module made as the one that was trained. Its weights are put back in the end.
        checkpoints: Paths, a pattern such as `"runs/demo/checkpoints/*.ckpt"`, or a folder. For a probe that compares
            with the initialisation, one of them is that of step 0, or the probe has `init_state`.
        data: What the run was trained on: a DataLoader, a Dataset, a LightningDataModule, or a dict of them such as
            `{"train": loader, "val": val_loader}`; the module itself, if it has its own `train_dataloader`.
        logger: A logger or several, as for a Trainer. A new one: what it has at these steps already may be replaced.
        trainer: A Trainer with the `precision`, `gradient_clip_val`, devices and so on that the run had; its callbacks
            are not called. None takes one process and no clipping.
        directory: Where to keep what was measured; by default the folder `replay` beside the checkpoints.
        keep: Whether to keep it; False measures every checkpoint again each time.

    Raises:
        ValueError: If there are no checkpoints, or they belong to another module or may run code.
        MisconfigurationException: If there are no probes, or two of one name.

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
            "replay measures with probes, of which there are none here, or not only: pass probes=[FisherTrace(), ...] "
            "(monitors and interventions need training)"
        )
    check_names([probe.name for probe in probes])
    go_over(paths, probes, module, _arguments(data, module), folder if keep else None, trainer, logger)


def _arguments(data: Any, module: LightningModule) -> dict[str, Any]:
    """The data as arguments of `Trainer.fit`."""
    if data is module:
        return {}
    if isinstance(data, LightningDataModule):
        return {"datamodule": data}
    named = data if isinstance(data, Mapping) and data.keys() <= _NAMES else {"train": data}
    if named.get("train") is None:
        raise MisconfigurationException(
            'replay needs the data that the run was trained on: pass data= that has it, such as {"train": loader}'
        )
    return {f"{name}_dataloaders": _loader(source) for name, source in named.items()}


def _loader(source: Any) -> Any:
    return DataLoader(source, batch_size=64) if isinstance(source, Dataset) else source
