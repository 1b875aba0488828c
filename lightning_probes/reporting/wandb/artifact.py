"""Weights & Biases: a checkpoint that lies there as an artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeGuard

FORM = "wandb:entity/project/artifact:alias"
"""What names an artifact."""
ARTIFACT = r"wandb:[^/:]+/[^/:]+/[^/:]+:[^/:]+"
_ENDINGS = (".ckpt", ".pt", ".pth")


def is_artifact(source: object) -> TypeGuard[str]:
    """Whether an argument names an artifact, and no file.

    Example:
        >>> is_artifact(FORM), is_artifact("wandb/latest-run/model.ckpt")
        (True, False)
    """
    return isinstance(source, str) and source.startswith("wandb:")


def downloaded(reference: str, argument: str) -> Path:
    """The file of an artifact with one checkpoint, in the folder where W&B keeps artifacts; downloaded if need be.

    Args:
        reference: `wandb:entity/project/artifact:alias`.
        argument: Which argument it was given as, for messages.

    Raises:
        ValueError: If it can't be downloaded, or does not hold exactly one checkpoint; the message names the argument.
    """
    folder = _folder(reference, argument)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [path for path in files if path.suffix in _ENDINGS] or files
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.relative_to(folder).as_posix() for path in found[:5])
    raise ValueError(
        f"{argument}={reference!r} holds {len(found)} files ({names}) where one checkpoint is needed: pass the path of "
        f"one of them in {str(folder)!r} as {argument}="
    )


def offline() -> str:
    """In which words this process is to stay away from the network; empty if it is not."""
    mode = os.environ.get("WANDB_MODE")
    return f"WANDB_MODE is {mode!r}" if mode in ("offline", "dryrun", "disabled") else ""


def _folder(reference: str, argument: str) -> Path:
    import wandb

    try:
        if why := offline():
            raise ConnectionError(why)
        return Path(wandb.Api().artifact(reference.removeprefix("wandb:")).download()).absolute()
    except Exception as error:  # of the network, of the key, of an artifact that is not there
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"{argument}={reference!r} can't be downloaded from W&B ({found}): check its name, the network and "
            f"WANDB_API_KEY, or download it elsewhere and pass the path of its file as {argument}="
        ) from error
