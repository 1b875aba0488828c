"""The measurements and state of one callback in one run, kept in files so that a resumed run has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_probes.probing.names import file_name
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.due import Due
from lightning_probes.probing.run.init_state import StateDict, capture_state, keep_state, kept_state
from lightning_probes.probing.run.journal import Journal, decoded, encoded
from lightning_probes.probing.run.record import Record
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.schedules import Schedule
from lightning_probes.results import Flag, Result

NOTHING: dict[str, Any] = {"path": None, "offset": 0, "sha256": ""}
"""The state of a journal that is not written to a file."""


class RunLog:
    """The measurements of one callback in one run, the time of its next event, and the run's initialisation.

    A checkpoint holds the few numbers of `state_dict` and the carried values. The measurements are in a JSON-lines file
    beside the run, which grows with every event. The initialisation is in a file named by its hash. If these files
    can't be written, a warning says so, and a resumed run lacks their content.

    Args:
        schedules: When to measure.
        say: Reports files that can't be written or found.

    Attributes:
        due: When the next measurement is due.
        record: The measurements.
        initial: Parameters and buffers at the initialisation, if the probe needs them and they are known: on the CPU,
            in their own dtype.
        carried: Values that one measurement leaves for the next, see `Probe`. They are inside the checkpoint, because
            they change with every event: otherwise each checkpoint would need a file of its own, and it would not be
            known when to delete it.
        drawn: How the samples were drawn, see `Runner`.
        begun: Whether this run has begun.
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
        self._kept_here: Path | None = None  # where this process has written or found the file

    def begin(self, processes: Processes) -> None:
        """Begin a fit. Only the first process keeps a journal."""
        self.begun = True
        if processes.rank != 0:
            self._journal = None

    def add(self, step: int, epoch: int, results: Mapping[str, Result], extra: Mapping[str, float]) -> list[Flag]:
        """Add an event, see `Record.add`, and note that the measurement of its step is finished."""
        risen = self.record.add(step, epoch, results, extra)
        if self._journal is not None:
            self._journal.add(encoded(step, epoch, results, extra))
            if self._writes_at_once:
                self.write()
        self.due.done(step)
        return risen

    def open(self, directory: Path, name: str, at_once: bool) -> None:
        """Write files from now on. For the first process only.

        Args:
            directory: The folder for the run's files.
            name: The probe's name.
            at_once: Whether to write each event immediately, and not only when a checkpoint is written.
        """
        assert self._journal is not None
        self._directory, self._writes_at_once = directory, at_once
        self._journal.keep_at(directory / f"{file_name(name)}.jsonl")
        if at_once:
            self.write()

    def find_initial(self, given: StateDict | None, module: nn.Module, step: int, captured: StateDict | None) -> None:
        """Find the initialisation, unless a checkpoint of this run has provided it.

        Args:
            given: The initialisation that the user passed, if any.
            module: The user's module, which at step 0 is the initialisation.
            step: The step at which the fit begins.
            captured: A copy that another probe has already made at step 0.
        """
        if given is not None:
            self.initial, self._kept_here = given, None
        elif step == 0:
            self.initial, self._kept_here = captured or capture_state(module), None
        elif self.initial is None:
            self._say.info("the initialisation of this run is not known: pass init_state= to compare with it")

    def write(self) -> bool:
        """Write all that is not written yet. Returns whether this succeeded."""
        try:
            if self.initial is not None and self._directory is not None and not self._is_kept_in(self._directory):
                self._kept = keep_state(self.initial, self._directory)
                self._kept_here = Path(self._kept["path"])
            if self._journal is not None:
                self._journal.flush()
        except OSError as error:
            self._say.warn(f"the files that a resumed run needs can't be written to {self._directory} ({error})")
            return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint. The files that it names are written first."""
        journal = self._journal.state_dict() if self.write() and self._journal is not None else NOTHING
        left = {"carried": dict(self.carried), "drawn": self.drawn}
        return {**self.due.state_dict(), **left, "journal": journal, "init": self._kept}

    def close(self) -> None:
        """End a fit, so that another run may append to the file."""
        if self._journal is not None:
            self._journal.release()

    def take_up(self, state: Mapping[str, Any], checkpoint: Path | None, processes: Processes) -> None:
        """Continue from a checkpoint, with the content of the files that the first process finds.

        Args:
            state: The result of `state_dict`.
            checkpoint: The checkpoint's path. It may have moved along with the files.
            processes: The processes, which all call this.
        """
        self.due.load_state_dict(state)
        # Checkpoints of older versions lack these two.
        self.carried, self.drawn = dict(state.get("carried", {})), state.get("drawn", {})
        path, lines = processes.from_first(Journal.read(state["journal"], checkpoint))
        if lines is None and state["journal"]["offset"]:
            lost = state["journal"]["path"]
            self._say.warn(f"the earlier measurements were not found at {lost}: the history starts anew")
        for line in lines or ():
            self.record.add(*decoded(line))
        if self._journal is not None:
            # A file that has grown since then is not changed, because a later checkpoint may need its last lines.
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
