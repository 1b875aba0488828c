"""What a replay keeps beside a finished run, so that one that was killed measures no checkpoint twice."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_probes.probing.names import file_name
from lightning_probes.probing.run.files import write_atomically
from lightning_probes.probing.run.journal import Journal
from lightning_probes.probing.run.log import RunLog

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_TAIL = 2**16


class Kept:
    """A probe's measurements and state in a folder of their own.

    The folder has the probe's name and a digest of its arguments: a probe of other arguments begins anew.

    Args:
        folder: The folder of the replay; None to keep nothing.
        name: The probe's name.
        settings: Its arguments, in a form that JSON can hold.

    Attributes:
        folder: Where the probe keeps its files; None for nowhere.
        state: What an earlier replay left; empty if there was none.
        done: The steps that it has measured.
    """

    def __init__(self, folder: Path | None, name: str, settings: Mapping[str, Any]) -> None:
        described = _ADDRESS.sub("", json.dumps(settings, sort_keys=True))
        digest = hashlib.sha256(described.encode()).hexdigest()[:8]
        self.folder = None if folder is None else folder / f"{file_name(name)}-{digest}"
        self.state: dict[str, Any] = {}
        self.done: set[int] = set()
        self._seen: dict[str, str] = {}

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / "state.pt"

    def read(self, checkpoints: Mapping[int, Path]) -> None:
        """Take up what an earlier replay left, if it has measured none but these checkpoints.

        Args:
            checkpoints: The present ones by step.
        """
        if self._path is None:
            return
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            seen = state.pop("seen")
            if any(str(step) in seen and seen[str(step)] != identity(path) for step, path in checkpoints.items()):
                return
            journal, lines = Journal.whole(Path(state["journal"]["path"]))
        except Exception:  # there is none, or it was cut off
            return
        steps = [int(json.loads(line)["step"]) for line in lines]
        self._seen, self.done = seen, set(steps)
        self.state = {**state, "journal": journal, "last_step": steps[-1] if steps else None}

    def begin(self, step: int, path: Path) -> None:
        """A checkpoint is measured next."""
        self._seen[str(step)] = identity(path)

    def write(self, log: RunLog) -> None:
        """Keep what the next replay needs.

        Raises:
            OSError: If it can't be written.
        """
        if self._path is None:
            return
        content = io.BytesIO()
        torch.save({**log.state_dict(), "seen": self._seen}, content)
        write_atomically(self._path, content.getbuffer())


def identity(path: Path) -> str:
    """By which a checkpoint is known again: its size, and the end of the file, which has the checksums of the rest."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        return f"{size} {hashlib.sha256(file.read()).hexdigest()}"
