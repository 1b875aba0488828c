"""What one callback knows of one run, and how that outlives the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_probes.probing.names import file_name
from lightning_probes.probing.run.due import Due
from lightning_probes.probing.run.init_state import (
    InitStateSource,
    StateDict,
    capture_state,
    keep_state,
    kept_state,
    load_state,
)
from lightning_probes.probing.run.journal import Journal, decoded, encoded
from lightning_probes.probing.run.processes import Processes
from lightning_probes.probing.run.record import Record
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.schedules import Schedule
from lightning_probes.results import Flag, Result

NOTHING: dict[str, Any] = {"path": None, "offset": 0, "sha256": ""}
"""The state of a journal that is not kept."""


class RunLog:
    """What one callback has measured in one run, when the next event is due, and where the run began.

    A checkpoint holds the few numbers of `state_dict`, and what is carried. The measurements lie beside the run in a
    JSON-lines file that grows with every event, the initialisation in a file named by its content. Where these files
    can't be written, that is said, and a resumed run will not know what they would hold.

    Args:
        schedules: When to measure.
        say: Says what can't be written or found.

    Attributes:
        due: When the next measurement is.
        record: The measurements.
        initial: Parameters and buffers at the initialisation, if the probe needs and knows them: on the CPU, each in
            its own dtype.
        carried: What the last measurement leaves to the next one, see `Probe`. It changes each time, so a file beside
            the run would be needed for every checkpoint that may still be read, and nobody could tell which to delete.
            What lies in the checkpoint is moved, read and deleted together with it.
        drawn: How the samples were drawn, see `Fit.drawn`.
        begun: Whether anything has been noted in this run.
    """

    def __init__(self, schedules: Sequence[Schedule], say: Speaker) -> None:
        self._say = say
        self.due = Due(schedules)
        self.record = Record()
        self.initial: StateDict | None = None
        self.carried: dict[str, Any] = {}
        self.drawn: dict[str, Any] = {}
        self.begun = False
        self._journal: Journal | None = Journal()
        self._directory: Path | None = None
        self._writes_at_once = False
        self._kept: dict[str, str] | None = None
        self._kept_here: Path | None = None  # where this process has put or seen it

    def begin(self, processes: Processes) -> None:
        """A fit begins. All processes but the first keep no journal."""
        self.begun = True
        if processes.rank != 0:
            self._journal = None

    def add(self, step: int, epoch: int, results: Mapping[str, Result], extra: Mapping[str, float]) -> list[Flag]:
        """Add an event, see `Record.add`: what was due at its step is done."""
        risen = self.record.add(step, epoch, results, extra)
        if self._journal is not None:
            self._journal.add(encoded(step, epoch, results, extra))
            if self._writes_at_once:
                self.write()
        self.due.done(step)
        return risen

    def open(self, directory: Path, name: str, at_once: bool) -> None:
        """Keep files from now on, in the first process of a run.

        Args:
            directory: Where the run has its files.
            name: The probe's.
            at_once: Write each event as it comes, and not only when a checkpoint is written.
        """
        assert self._journal is not None
        self._directory, self._writes_at_once = directory, at_once
        self._journal.keep_at(directory / f"{file_name(name)}.jsonl")
        if at_once:
            self.write()

    def find_initial(
        self, source: InitStateSource | None, module: nn.Module, step: int, captured: StateDict | None
    ) -> None:
        """Find where the run began, unless that was taken up from a file.

        Args:
            source: Where the user says it is.
            module: The user's module; at step 0 it is the initialisation.
            step: The step at which the fit begins.
            captured: What another probe has already copied of it at step 0.
        """
        if source is not None:
            self.initial, self._kept_here = load_state(source, module), None
        elif step == 0:
            self.initial, self._kept_here = captured or capture_state(module), None
        elif self.initial is None:
            self._say.info("the initialisation of this run is not known: pass init_state= to compare with it")

    def write(self) -> bool:
        """Write what is not written yet; whether that went well."""
        try:
            if self.initial is not None and self._directory is not None and not self._is_kept_in(self._directory):
                self._kept = keep_state(self.initial, self._directory)
                self._kept_here = Path(self._kept["path"])
            if self._journal is not None:
                self._journal.flush()
        except OSError as error:
            self._say.warn(f"can't write to {self._directory} what a resumed run will need ({error})")
            return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """What to write into a checkpoint, once the files that it names are written."""
        journal = self._journal.state_dict() if self.write() and self._journal is not None else NOTHING
        left = {"carried": dict(self.carried), "drawn": self.drawn}
        return {**self.due.state_dict(), **left, "journal": journal, "init": self._kept}

    def close(self) -> None:
        """A fit ends: another run may go on in the file of this one."""
        if self._journal is not None:
            self._journal.release()

    def take_up(self, state: Mapping[str, Any], checkpoint: Path | None, processes: Processes) -> None:
        """Go on from a checkpoint, with what the first process finds in the files.

        Args:
            state: What `state_dict` gave.
            checkpoint: The checkpoint's path, which may have moved along with the files.
            processes: All of which take this up.
        """
        self.due.load_state_dict(state)
        self.carried, self.drawn = dict(state.get("carried", {})), state.get("drawn", {})  # which older ones lack
        path, lines = processes.from_first(Journal.read(state["journal"], checkpoint))
        if lines is None and state["journal"]["offset"]:
            self._say.warn(f"what was measured before is not at {state['journal']['path']}: the history begins anew")
        for line in lines or ():
            self.record.add(*decoded(line))
        if self._journal is not None:
            # A file that has grown since is left as it is: there may be a checkpoint that knows the rest.
            whole = path is not None and path.stat().st_size == state["journal"]["offset"]
            self._journal = Journal(path if whole else None, lines or (), are_written=whole)
        self._kept = state["init"]
        if self._kept is None:
            return
        self.initial = kept_state(self._kept, checkpoint)
        found = processes.sum(torch.tensor(float(self.initial is not None), device=processes.device))
        if found < processes.size:
            self.initial = processes.from_first(self.initial)

    def _is_kept_in(self, directory: Path) -> bool:
        return self._kept_here is not None and self._kept_here.parent == directory and self._kept_here.exists()
