"""An HTML page about a run, which needs no account and no network."""

from __future__ import annotations

import inspect
import time
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from lightning_probes.probing.configured import checks_its_arguments
from lightning_probes.probing.run.checkpoints import watch_checkpoints
from lightning_probes.probing.run.facts import facts_of
from lightning_probes.probing.run.files import write_atomically
from lightning_probes.probing.run.measurements import Measurements
from lightning_probes.probing.run.progress import risen
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.trainer import TrainerRun
from lightning_probes.probing.user_code import error_text
from lightning_probes.probing.values import refuse
from lightning_probes.reporting.html.page import Section, page

if TYPE_CHECKING:
    from collections.abc import Callable


@checks_its_arguments
class HTMLReport(Callback):
    """Writes the results of a run's probes to one HTML file, which any browser shows offline.

    The page has the settings of the run and the probes, the raised flags, every picture of every probe with an
    explanation and its limits, the latest numbers with their standard errors, and the cost. The file is replaced in the
    training step after each checkpoint, at the end of the fit, and when training stops with an error after a
    measurement. If the file can't be written during training, a warning is given. The position among the callbacks does
    not matter. Only rank 0 writes.

    Cost: about a tenth of a second each time for the pictures of the four probes, and 5 MB, most of it Plotly's script.
    Nothing is written under `fast_dev_run`.

    Args:
        path: The file; its folders are created. An existing file is replaced.

    Raises:
        MisconfigurationException: At the start of a fit, if the Trainer has no probe or the path can't be a file.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_probes import FisherTrace, HTMLReport
        >>> trainer = Trainer(callbacks=[FisherTrace(), HTMLReport("runs/report.html")], logger=False)
    """

    def __init__(self, path: str | Path = "report.html") -> None:
        if not isinstance(path, (str, PathLike)) or not str(path):
            refuse("path", "that of a file", path)
        self.path = Path(path)
        self.say = Speaker("HTMLReport")
        self._due, self._start = False, 0.0
        self._unwatch: Callable[[], None] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the settings, and start to watch for checkpoints."""
        if stage != "fit":
            return
        if not TrainerRun(trainer, pl_module).callbacks:
            raise MisconfigurationException(
                "HTMLReport has nothing to report: add a probe, as in Trainer(callbacks=[FisherTrace(), HTMLReport()])"
            )
        if self.path.is_dir():
            raise MisconfigurationException(f"HTMLReport: path={str(self.path)!r} is a folder: name a file in it")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MisconfigurationException(f"HTMLReport: path={str(self.path)!r} can't be written: {error}") from error
        self._due, self._start = False, time.perf_counter()
        self._unwatch = watch_checkpoints(trainer, self._notice_checkpoint)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write if there is a new checkpoint; probes that were due after it have measured at the start of the batch."""
        if self._due:
            run = TrainerRun(trainer, pl_module)
            with run.waiting(self.say.info):
                self._write(run, "training")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the start of training."""
        self._start = time.perf_counter()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the results so far; an error here does not hide the one that stopped training."""
        watched = self._unwatch is not None
        self._stop_watching()
        run = TrainerRun(trainer, pl_module)
        if watched and any(each.history for each in run.callbacks):
            self._write(run, f"stopped by {error_text(exception)}")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write for the last time. Some probes still measure in `on_fit_end`, which comes before."""
        if stage == "fit" and self._unwatch is not None:
            self._stop_watching()
            run = TrainerRun(trainer, pl_module)
            self._write(run, "stopped early" if run.should_stop else "finished")

    def _notice_checkpoint(self) -> None:
        self._due = True

    def _stop_watching(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def _write(self, run: TrainerRun, status: str) -> None:
        self._due = False
        if not run.is_first or run.is_dry:
            return
        try:
            elapsed = time.perf_counter() - self._start
            callbacks = run.callbacks
            if self.path.exists() and not any(each.history for each in callbacks):
                return  # the existing page has more results
            sections = [_section(each, elapsed) for each in callbacks]
            title = f"What the probes saw in {type(run.module).__name__}"
            text = page(title, facts_of(run, status, elapsed), risen(run.siblings), sections)
            write_atomically(self.path, text.encode())
        except Exception as error:  # a failed report must not stop training
            self.say.warn(f"{str(self.path)!r} was not written: {type(error).__name__}: {error}")


def _section(probe: Measurements, elapsed: float) -> Section:
    about = (inspect.getdoc(type(probe)) or "").partition("\n")[0]
    kind, share = type(probe).__name__, probe.seconds / elapsed if elapsed else 0.0
    return Section(probe.name, kind, about, probe.settings, probe.history, probe.results, probe.pictures(), share)
