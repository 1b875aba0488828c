"""The checkpoints of a finished run: find them, read them without running code, and sort them by step."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch

from lightning_probes.probing.run.replay import Saved, step_of
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.user_code import error_text

Checkpoints: TypeAlias = str | PathLike[str] | Sequence[str | PathLike[str]]

_REFUSED = re.compile(r"(?:GLOBAL|Unsupported global: GLOBAL) ([\w.]+)")


class DamagedError(Exception):
    """The file is not a complete checkpoint."""


def found(checkpoints: Checkpoints) -> list[Path]:
    """The files behind a path, a pattern such as "runs/*.ckpt", a folder, or several of these.

    Raises:
        ValueError: If there is no such file; the message names `checkpoints`.
    """
    asked = [checkpoints] if isinstance(checkpoints, (str, PathLike)) else list(checkpoints)
    paths = [path for each in asked for path in _expanded(Path(each))]
    if not paths:
        raise ValueError(
            f"checkpoints={checkpoints!r} names no file: pass paths, a pattern such as 'runs/*.ckpt', or a folder"
        )
    return list(dict.fromkeys(path.absolute() for path in paths))


def _expanded(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.ckpt"))
    if glob.has_magic(str(path)) and not path.exists():
        return sorted(map(Path, glob.glob(str(path), recursive=True)))
    return [path]


def in_order(paths: Sequence[Path], say: Speaker) -> dict[int, Path]:
    """The checkpoints by step, in order, one per step. Damaged files are reported and skipped."""
    steps: dict[int, Path] = {}
    for path in paths:
        saved = read(path, say)
        if saved is not None:
            steps.setdefault(saved.step, path)
    return {step: steps[step] for step in sorted(steps)}


def read(path: Path, say: Speaker) -> Saved | None:
    """Read a checkpoint. A damaged file is reported, and the result is None.

    Raises:
        ValueError: If loading it may run code; the message says how to allow that.
    """
    try:
        content = _loaded(path)
        return Saved(path, step_of(content), content)
    except (OSError, DamagedError, KeyError, TypeError, AttributeError) as error:
        cause = error.__cause__ or error
        say.warn(f"checkpoint {str(path)!r} is damaged and was skipped ({error_text(cause)})")
        return None


def _loaded(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except UnpicklingError as error:
        name = _REFUSED.search(str(error))
        if name is None:
            raise DamagedError from error
        raise ValueError(
            f"checkpoint {str(path)!r} holds an object of class {name[1]}, and loading it may run code: if you trust "
            f"the file, call torch.serialization.add_safe_globals([{name[1]}]) first"
        ) from error
    except Exception as error:  # torch.load raises many kinds of errors for empty, truncated and foreign files
        raise DamagedError from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise DamagedError("it is not a Lightning checkpoint")
    return content
