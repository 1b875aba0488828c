"""How a probe measures: the same way in a fit, without a Trainer, and at a saved checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

from lightning_probes.probing.checks import check_parameters, naming
from lightning_probes.probing.data.deferred import LARGEST_KEPT
from lightning_probes.probing.data.drawing import DataSources, Drawing
from lightning_probes.probing.data.places import kept, same_samples
from lightning_probes.probing.isolation.muting import muted
from lightning_probes.probing.isolation.quiet import replaying
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.announce import OnError
from lightning_probes.probing.run.halving import ProbeSets, Samples, attempt
from lightning_probes.probing.run.progress import Progress
from lightning_probes.probing.run.record import listed
from lightning_probes.probing.run.run import Run
from lightning_probes.probing.run.sizes import suit, suit_to_state
from lightning_probes.probing.run.sources import draw_probe_sets
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.user_code import brief
from lightning_probes.probing.view import ModelView
from lightning_probes.results import Result

T = TypeVar("T")


class Subject(Protocol):
    """The part of a probe that the runner uses; see `Probe`."""

    say: Speaker
    objective: Objective
    carried: dict[str, Any]
    num_samples: int
    micro_batch_size: int | None
    on_error: OnError
    seed: int

    def sources(self, run: Run) -> DataSources:
        """The data that samples are drawn from."""

    def prepare(self, view: ModelView) -> None:
        """See `Probe`."""

    def divisible(self, pairs: ModelView, singles: ModelView) -> bool:
        """See `Probe`."""

    def measure(self, view: ModelView) -> Iterable[Result]:
        """See `Probe`."""


class Runner:
    """Measures for one probe in one run: draws its samples, runs its checks, and halves micro-batches if necessary.

    Args:
        probe: The probe.
        progress: The state of this probe in this run.

    Attributes:
        samples: The probe data, until the run ends.
    """

    def __init__(self, probe: Subject, progress: Progress) -> None:
        self._probe = probe
        self._progress = progress
        self._trials: list[bool] = []
        self._places: dict[str, Any] = {}
        self.samples: Samples | None = None

    def draw(self, run: Run) -> None:
        """Draw the probe data; report if there are fewer samples than requested.

        A resumed run draws the same samples again. They are drawn anew if the user's code needs micro-batches of
        another size, see `sizes.suit`.
        """
        probe, processes, say = self._probe, self._progress.processes, self._probe.say
        before = self._progress.log.drawn
        drawing = Drawing(
            probe.num_samples, probe.micro_batch_size, probe.seed, processes.rank, processes.size,
            limit=run.sample_limit,
        )  # fmt: skip
        loaders = run.sources(probe.sources(run))
        for name, (source, mode) in loaders.items():
            source, self._places[name] = kept(source, before.get("places", {}).get(name, ()))
            loaders[name] = source, mode

        def draw(how: Drawing) -> ProbeSets:
            return draw_probe_sets(loaders, how, processes if how.world_size > 1 else Processes())

        with muted():
            self.samples = samples = Samples(draw, drawing, before.get("halved_to"), before.get("full"))
        for name in [name for name in loaders if name not in samples.sets]:
            say.info(f"{name} data is left out: it is empty")
        for split, probe_set in samples.sets.items():
            if (found := probe_set.num_samples) < probe.num_samples:
                say.info(f"{split} data has {found} samples of the {probe.num_samples} asked for")
        self._alone(run)(suit)(samples, partial(self.look, run), processes, say)
        for split in samples.deferred:
            say.info(
                f"{split} data takes more than {LARGEST_KEPT / 2**30:g} GiB of memory in a process, so each pass "
                "reads it again: pass a smaller num_samples= to keep it in memory"
            )
        fingerprints = before.get("fingerprints")
        if processes.rank == 0 and fingerprints and not same_samples(fingerprints, samples.fingerprints):
            say.warn(
                "the probe data is not the data used before the run was interrupted: measurements from before and "
                "after the interruption are not comparable"
            )

    def try_out(self, run: Run) -> None:
        """Run all checks now, so that errors of the first measurement come before training time is spent."""
        self._compute(run, self._check, self._alone(run, run.step))

    def measure(self, run: Run) -> list[Result]:
        """Measure in all processes or in none. When memory runs out, use smaller micro-batches.

        Raises:
            RuntimeError: If memory runs out and micro-batches can't be halved without changing the result.
            WrittenError: If the user's code wrote to a parameter in any process. The probe then stops measuring.
        """
        return self._compute(run, lambda view: listed(self._probe.measure(view)), self._alone(run, run.step))

    def look(self, run: Run, data: ProbeSets) -> ModelView:
        """A view of the present model, with some data."""
        progress = self._progress
        processes = progress.processes
        # Running statistics differ between processes; a checkpoint holds those of the first process.
        buffers = processes.tensors_from_first(dict(run.module.named_buffers())) if processes.size > 1 else None
        return ModelView(
            Twin(run.module, buffers), self._probe.objective, data, self._probe.seed, progress.log.initial,
            run.optimizers, run.step, run, processes, self._trials,
        )  # fmt: skip

    @property
    def data(self) -> ProbeSets:
        """The probe sets by name, with their present micro-batches."""
        return {} if self.samples is None else self.samples.sets

    @property
    def _drawn(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same samples in the same micro-batches, and to verify that it did."""
        if self.samples is None:
            return {}
        how = {"halved_to": self.samples.halved_to, "full": self.samples.full}
        return {**how, "places": self._places, "fingerprints": self.samples.fingerprints}

    def _check(self, view: ModelView) -> None:
        check_parameters(view)
        self._probe.prepare(view)

    def _compute(self, run: Run, compute: Callable[[ModelView], T], alone: Alone) -> T:
        probe, log = self._probe, self._progress.log

        def compute_anew(view: ModelView) -> T:
            # A failed attempt may have changed what is carried, perhaps in some of the processes only.
            probe.carried = copy.deepcopy(log.carried)
            return compute(view)

        try:
            computed = self._attempt(run, compute_anew, alone)
        except Exception:
            self._progress.failed = self._progress.failed or self._progress.processes.written
            raise
        log.carried, log.drawn = probe.carried, self._drawn
        return computed

    def _attempt(self, run: Run, compute: Callable[[ModelView], T], alone: Alone) -> T:
        samples, processes, look = self.samples, self._progress.processes, partial(self.look, run)
        assert samples is not None
        halve = partial(self._halve, run, alone)

        def checked(view: ModelView) -> T:
            self._check(view)
            return compute(view)

        try:
            computed: T = attempt(alone(lambda: compute(look(samples.sets))), processes, halve)
        except Exception:
            if processes.written:
                raise
            # A state that the module keeps between batches may by now have the size of training batches.
            with processes.together():
                if not alone(lambda: suit_to_state(samples, look, processes, self._probe.say))():
                    raise
            computed = attempt(alone(lambda: checked(look(samples.sets))), processes, halve)
        return computed

    def _halve(self, run: Run, alone: Alone, failure: Exception) -> None:
        samples, look, probe = self.samples, partial(self.look, run), self._probe
        assert samples is not None
        size = samples.largest
        if not samples.halve(alone(lambda pairs, singles: probe.divisible(look(pairs), look(singles)))):
            raise RuntimeError(
                f"{probe.say.name} ran out of memory on micro-batches of {size} samples, and smaller ones would not "
                "help or would change the result: pass a smaller micro_batch_size=, or data= with smaller batches or "
                f"samples ({brief(failure)})"
            ) from failure
        probe.say.info(f"out of memory: continuing with micro-batches of {samples.largest} samples")

    def _alone(self, run: Run, step: int | None = None) -> Alone:
        """Wrap functions that run the user's code: they then leave training alone, and errors name the probe."""
        by_name = naming(type(self._probe).__name__, None if run.is_single else step)
        alone = replaying(run.module, keep=run.is_single or self._probe.on_error == "warn")
        return lambda function: by_name(alone(function))


class Alone(Protocol):
    """See `Runner._alone`."""

    def __call__(self, function: Callable[..., Any], /) -> Callable[..., Any]:
        """Wrap a function."""
