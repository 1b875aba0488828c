"""What a probe has of one fit: its samples, the processes that share them, and the time that measuring takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from lightning_probes.probing.data.drawing import DataSource, Drawing
from lightning_probes.probing.data.places import kept, same_samples
from lightning_probes.probing.data.sizes import suit, suit_to_state
from lightning_probes.probing.isolation.muting import muted
from lightning_probes.probing.run.halving import ProbeSets, Samples, attempt
from lightning_probes.probing.run.processes import Processes
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.run.trainer import draw_probe_sets, find_sources, overfit_samples
from lightning_probes.probing.user_code import brief
from lightning_probes.probing.view import ModelView

T = TypeVar("T")
Alone: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


class Fit:
    """One fit, from its first training batch to its end.

    Attributes:
        started: Whether the first batch has come.
        failed: Whether it then turned out that nothing can be measured, or can be measured any more.
        undrawn: Whether something was measured that no picture shows yet.
        flags_unlogged: Whether a flag has risen that no logged table of flags shows yet.
        start: When the first batch came, by `time.perf_counter`.
        seconds: Spent measuring and reporting.
        processes: Those that share the samples.
        samples: The probe data, while the fit lasts.
        trials: See `ModelView`.
        settings: What the run's config records of the probe.
    """

    def __init__(self) -> None:
        self.started = self.failed = self.undrawn = self.flags_unlogged = False
        self.start = self.seconds = 0.0
        self.processes = Processes()
        self.samples: Samples | None = None
        self.trials: list[bool] = []
        self.settings: dict[str, Any] = {}
        self._places: dict[str, Any] = {}
        self._before: Mapping[str, Any] = {}

    def begin(self, trainer: Any) -> None:
        """The first batch has come; the fit counts as failed until it is clear that it can be measured."""
        self.started = self.failed = True
        self.start = time.perf_counter()
        self.processes = Processes(trainer.global_rank, trainer.world_size, trainer.strategy.root_device)

    def draw(
        self, trainer: Any, sources: Sequence[DataSource], num_samples: int, micro_batch_size: int | None, seed: int,
        drawn: Mapping[str, Any], say: Speaker,
    ) -> None:  # fmt: skip
        """Draw the probe data, as it was `drawn` before in this run, and tell where it is less than asked for."""
        drawing = Drawing(
            num_samples, micro_batch_size, seed, trainer.global_rank, trainer.world_size,
            limit=overfit_samples(trainer),
        )  # fmt: skip
        loaders, processes, self._before = find_sources(trainer, sources), self.processes, drawn
        for name, (source, mode) in loaders.items():
            source, self._places[name] = kept(source, drawn.get("places", {}).get(name, ()))
            loaders[name] = source, mode

        def draw(how: Drawing) -> ProbeSets:
            return draw_probe_sets(loaders, how, processes if how.world_size > 1 else Processes())

        with muted():
            self.samples = Samples(draw, drawing, drawn.get("halved_to"), drawn.get("full"))
        if "val" in loaders and "val" not in self.samples.sets:
            say.info("validation data is left out: it is empty")
        for split, probe_set in self.samples.sets.items():
            if (found := probe_set.num_samples) < num_samples:
                say.info(f"{split} data has {found} samples of the {num_samples} asked for")

    def suit(self, look: Callable[[ProbeSets], ModelView], say: Speaker, alone: Alone) -> None:
        """Draw again where the user's code asks for other micro-batches; see `sizes.suit`, and `measure`."""
        assert self.samples is not None
        alone(suit)(self.samples, look, self.processes, say)
        before = self._before.get("fingerprints")
        if self.processes.rank == 0 and before and not same_samples(before, self.samples.fingerprints):
            say.warn(
                "the probe data is not that of the run so far: what was measured before this break and what comes "
                "after it do not compare"
            )

    @property
    def data(self) -> ProbeSets:
        """The samples as they are cut now, by name."""
        assert self.samples is not None
        return self.samples.sets

    @property
    def drawn(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same samples in the same micro-batches, and to know if it has."""
        if self.samples is None:
            return {}
        how = {"halved_to": self.samples.halved_to, "full": self.samples.full}
        return {**how, "places": self._places, "fingerprints": self.samples.fingerprints}

    def measure(
        self, compute: Callable[[ModelView], T], look: Callable[[ProbeSets], ModelView],
        divisible: Callable[[ModelView, ModelView], bool], say: Speaker, alone: Alone,
        check: Callable[[ModelView], None],
    ) -> T:  # fmt: skip
        """Compute in all processes or in none, in smaller micro-batches where memory lacks.

        Args:
            compute: Computes from a view.
            look: Makes a view of the model with some data.
            divisible: See `Probe.divisible`.
            say: Tells of other micro-batches.
            alone: Makes of a function that runs the user's code one that leaves training alone.
            check: What is done once with data that is new.

        Raises:
            RuntimeError: If memory lacks and micro-batches can't be halved without another result.
            WrittenError: If the user's code wrote to a parameter, in whichever process; nothing is measured any more.
        """
        samples = self.samples
        assert samples is not None

        def halve(failure: Exception) -> None:
            size = samples.largest
            if not samples.halve(alone(lambda pairs, singles: divisible(look(pairs), look(singles)))):
                raise RuntimeError(
                    f"{say.name} ran out of memory on micro-batches of {size} samples, and smaller ones do not help "
                    "or would change the result: pass a smaller micro_batch_size=, or data= with smaller batches or "
                    f"samples ({brief(failure)})"
                ) from failure
            say.info(f"out of memory: going on with micro-batches of {samples.largest} samples")

        try:
            computed: T = self._computed(compute, look, halve, alone, check, say)
        except Exception:
            self.failed = self.failed or self.processes.written
            raise
        return computed

    def _computed(
        self, compute: Callable[[ModelView], T], look: Callable[[ProbeSets], ModelView],
        halve: Callable[[Exception], None], alone: Alone, check: Callable[[ModelView], None], say: Speaker,
    ) -> T:  # fmt: skip
        samples = self.samples
        assert samples is not None
        try:
            computed: T = attempt(alone(lambda: compute(look(samples.sets))), self.processes, halve)
        except Exception:
            if self.processes.written:
                raise
            # What the module carries on from batch to batch may have come to be of the size of training's.
            with self.processes.together():
                if not alone(lambda: suit_to_state(samples, look, self.processes, say))():
                    raise
            computed = attempt(alone(lambda: _checked(compute, check, look(samples.sets))), self.processes, halve)
        return computed


def _checked(compute: Callable[[ModelView], T], check: Callable[[ModelView], None], view: ModelView) -> T:
    check(view)
    return compute(view)
