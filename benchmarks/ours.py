"""The probes of this package, run as a fit runs them. The only file here that knows how a probe is built inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from benchmarks.work import Work
from lightning_probes import Probe
from lightning_probes.probing import Monitor
from lightning_probes.probing.checks import check_parameters
from lightning_probes.probing.isolation.quiet import measuring
from lightning_probes.probing.moment import Moment, moment
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.bare import BareRun
from lightning_probes.probing.run.init_state import load_state
from lightning_probes.probing.run.optimizers import Stepping, optimizer_groups, stepping
from lightning_probes.probing.run.record import named
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result

Results = dict[str, Result]


class Ready:
    """A probe whose data is drawn and whose dry run is done.

    Args:
        probe: The probe.
        work: What to measure.
        with_init: Whether the initialisation is known, as it is in a fit that was seen from its start.
        data: The probe sets; by default the one of `work`.
        processes: Those that share them.
    """

    def __init__(
        self,
        probe: Probe,
        work: Work,
        with_init: bool = False,
        data: Any = None,
        processes: Processes | None = None,
    ) -> None:
        self.probe = probe
        self.work = work
        self.init_state = load_state(work.init_state, work.module) if with_init else None
        self.data = {"train": work.probe_set} if data is None else data
        self._run = BareRun(work.module, work.loader)
        probe.progress.log.initial = self.init_state
        probe.progress.processes = Processes() if processes is None else processes
        with measuring():
            self._kept = self.view()
            check_parameters(self._kept)
            probe.prepare(self._kept)

    def view(self) -> ModelView:
        """A view on a new twin, as every event of a fit has one, and as it decides about gradients."""
        return self.probe.runner.look(self._run, self.data)

    def event(self) -> Results:
        """One event of a fit but for its report: the twin, the view and the measurement."""
        with measuring():
            return named(self.probe.name, self.probe.measure(self.view()))

    def measure(self) -> Results:
        """The measurement alone, on a view that is there already."""
        with measuring():
            return named(self.probe.name, self.probe.measure(self._kept))

    def evaluate(self) -> Results:
        """All from nothing: `probe.evaluate(module, loader)`."""
        return self.probe.evaluate(self.work.module, self.work.loader, self.init_state)


class ReadyMonitor:
    """A monitor at one training step after another, each of them due, without a Trainer.

    Args:
        monitor: The monitor.
        module: Whose training it reads.
    """

    def __init__(self, monitor: Monitor, module: nn.Module) -> None:
        self.monitor = monitor
        self.module = module

    def event(self, optimizer: Optimizer, take: Callable[[], object]) -> Results:
        """One event but for its report: what it reads before a step, the step, and what it reads after it."""
        by = stepping(optimizer, [optimizer], self.module, None, clips=False)
        found = [*self.monitor.before_step(self._moment(optimizer, by))]
        take()
        return named(self.monitor.name, [*found, *self.monitor.after_step(self._moment(optimizer))])

    def _moment(self, optimizer: Optimizer, by: Stepping | None = None) -> Moment:
        return moment(self.module, 0, optimizer_groups([optimizer], self.module), None, Processes(), 0, by)


@contextmanager
def counting_products(counts: list[int]) -> Iterator[None]:
    """Append the number of matrix-vector products of each Lanczos run of `Sharpness` while the block runs."""
    import lightning_probes.callbacks.curvature.hessian as module

    name = "lanczos_top_eigenpair"
    inner: Callable[..., Any] = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        pair = inner(*args, **kwargs)
        counts.append(pair.matvecs)
        return pair

    setattr(module, name, counted)
    try:
        yield
    finally:
        setattr(module, name, inner)
