"""What one probe knows of one run, and how that outlives the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_probes.probing.announce import Speaker
from lightning_probes.probing.due import Due
from lightning_probes.probing.init_state import StateDict, keep_state, kept_state
from lightning_probes.probing.journal import Journal, decoded, encoded, unused
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.record import Record
from lightning_probes.probing.schedules import Schedule
from lightning_probes.results import Flag, Result


class RunLog:
    """The measurements of one probe in one run, when the next is due, and where the run began.

    A checkpoint holds the few numbers of `state_dict`. The measurements lie beside the run in a JSON-lines file that
    grows with every event, the initialisation in a file named by its content.

    Args:
        schedules: When to measure.

    Attributes:
        due: When the next measurement is.
        record: The measurements.
        initial: Parameters and buffers at the initialisation, where the probe needs and knows them.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self.due = Due(schedules)
        self.record = Record()
        self.initial: StateDict | None = None
        self._journal = Journal()
        self._directory: Path | None = None
        self._writes_at_once = False
        self._kept: dict[str, str] | None = None

    def add(self, step: int, epoch: int, results: Mapping[str, Result], extra: Mapping[str, float]) -> list[Flag]:
        """Add an event, see `Record.add`."""
        self._journal.add(encoded(step, epoch, results, extra))
        if self._writes_at_once:
            self._journal.flush()
        return self.record.add(step, epoch, results, extra)

    def open(self, directory: Path, name: str, at_once: bool) -> None:
        """Keep files from now on, in the first process of a run.

        Args:
            directory: Where the run has its files.
            name: The probe's.
            at_once: Write each event as it comes, and not only when a checkpoint is written.
        """
        self._directory, self._writes_at_once = directory, at_once
        path = directory / f"{name}.jsonl"
        self._journal.path = path if self._journal.path == path else unused(path)
        if at_once:
            self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What to write into a checkpoint, once the files that it names are written."""
        if self.initial is not None and self._directory is not None:
            self._kept = keep_state(self.initial, self._directory)
        return {**self.due.state_dict(), "journal": self._journal.state_dict(), "init": self._kept}

    def take_up(self, state: Mapping[str, Any], checkpoint: Path | None, processes: Processes, say: Speaker) -> None:
        """Go on from a checkpoint, with what the first process finds in the files.

        Args:
            state: What `state_dict` gave.
            checkpoint: The checkpoint's path, which may have moved along with the files.
            processes: All of which take this up.
            say: Says what is not found.
        """
        self.due.load_state_dict(state)
        path, lines = processes.from_first(Journal.read(state["journal"], checkpoint))
        if lines is None:
            say.warn(f"what was measured before is not at {state['journal']['path']}: the history begins anew")
        for line in lines or ():
            self.record.add(*decoded(line))
        self._journal = Journal(path, lines or ())
        self._kept = state["init"]
        if self._kept is None:
            return
        self.initial = kept_state(self._kept, checkpoint)
        found = processes.sum(torch.tensor(float(self.initial is not None), device=processes.device))
        if found < processes.size:
            self.initial = processes.from_first(self.initial)
