"""The files that a replay keeps beside a finished run, so that a repeated replay measures no checkpoint twice."""

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
    """A probe's measurements and state, in a folder of their own.

    The name of the folder has the probe's name and a hash of its arguments, so a probe with other arguments starts
    anew.

    Args:
        folder: The folder of the replay; None to keep nothing.
        name: The probe's name.
        settings: Its arguments, as values that JSON can hold.

    Attributes:
        folder: The folder for the probe's files; None if it keeps none.
        state: The state that an earlier replay left; empty if there was none.
        done: The steps that the earlier replay has measured.
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
        """Read the state of an earlier replay, unless one of its checkpoints has since been replaced.

        Args:
            checkpoints: The present checkpoints by step.
        """
        if self._path is None:
            return
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            seen = state.pop("seen")
            if any(str(step) in seen and seen[str(step)] != identity(path) for step, path in checkpoints.items()):
                return
            journal, lines = Journal.whole(Path(state["journal"]["path"]))
        except Exception:  # the files are missing or incomplete
            return
        steps = [int(json.loads(line)["step"]) for line in lines]
        self._seen, self.done = seen, set(steps)
        self.state = {**state, "journal": journal, "last_step": steps[-1] if steps else None}

    def begin(self, step: int, path: Path) -> None:
        """Note which checkpoint is measured next."""
        self._seen[str(step)] = identity(path)

    def write(self, log: RunLog) -> None:
        """Write the state that the next replay needs.

        Raises:
            OSError: If the file can't be written.
        """
        if self._path is None:
            return
        content = io.BytesIO()
        torch.save({**log.state_dict(), "seen": self._seen}, content)
        write_atomically(self._path, content.getbuffer())


def identity(path: Path) -> str:
    """Size and hash of a checkpoint. The end of the file is enough, because it holds checksums of the rest."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        return f"{size} {hashlib.sha256(file.read()).hexdigest()}"
