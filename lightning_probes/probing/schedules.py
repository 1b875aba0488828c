"""When a probe measures. A schedule holds only a rule and no state of a run, so several probes can share an object."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_probes.probing.configured import checks_its_arguments
from lightning_probes.probing.values import check_number, check_whole_number


# Not a dataclass: LightningCLI would then accept no subclass for an argument of type Schedule.
class Schedule:
    """A schedule that is never due. To define a schedule, subclass it and override the moments at which to measure.

    A step is the logger's own step (`trainer/global_step`). A probe measures at most once per step, also if several
    schedules are due.

    Example:
        >>> @dataclass(frozen=True)
        ... class AtSteps(Schedule):
        ...     steps: tuple[int, ...]
        ...     def next_step(self, after: int) -> int | None:
        ...         return min((step for step in self.steps if step > after), default=None)
        >>> AtSteps((10, 100)).next_step(10)
        100
    """

    def next_step(self, after: int) -> int | None:
        """The first due step after the step `after`, or None. Called with -1 before the first step."""
        return None

    def at_epoch_end(self, epoch: int) -> bool:
        """Whether the end of this epoch (counted from 0) is due."""
        return False

    def at_checkpoint(self, step: int, previous: int | None) -> bool:
        """Whether a checkpoint of this step is due. `previous` is the step of the last measured checkpoint, if any."""
        return False

    def at_fit_end(self) -> bool:
        """Whether the end of `trainer.fit` is due."""
        return False


@checks_its_arguments
@dataclass(frozen=True)
class EveryNSteps(Schedule):
    """Steps `start`, `start + n`, `start + 2n`, ... up to and including `stop`.

    Args:
        n: Number of steps from one measurement to the next.
        start: First step; 0 is the initialisation, before any training.
        stop: Last step that may be measured; None for no end.

    Raises:
        ValueError: If `n` is not a whole number of at least 1, or `start` or `stop` is not one of at least 0.

    Example:
        >>> EveryNSteps(100, start=50).next_step(50)
        150
    """

    n: int
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        check_whole_number("EveryNSteps: n", self.n, least=1)
        check_whole_number("EveryNSteps: start", self.start)
        check_whole_number("EveryNSteps: stop", self.stop, optional=True)

    def next_step(self, after: int) -> int | None:
        """The first step of the series after the step `after`."""
        step = self.start if after < self.start else after + self.n - (after - self.start) % self.n
        return step if self.stop is None or step <= self.stop else None


@checks_its_arguments
@dataclass(frozen=True)
class LogSpacedSteps(Schedule):
    """Steps that are evenly spaced on a logarithmic axis, and therefore dense at the start: 0, 1, 2, 3, ...

    A network changes most in its first steps; later steps each change it less.

    Args:
        per_decade: Number of measurements for each factor of ten.
        stop: Last step that may be measured; None for no end.

    Raises:
        ValueError: If `per_decade` is less than 1.

    Example:
        >>> schedule, steps = LogSpacedSteps(4), [-1]
        >>> while steps[-1] < 100:
        ...     steps.append(schedule.next_step(steps[-1]))
        >>> steps[1:]
        [0, 1, 2, 3, 6, 10, 18, 32, 56, 100]
    """

    per_decade: int
    stop: int | None = None

    def __post_init__(self) -> None:
        check_whole_number("LogSpacedSteps: per_decade", self.per_decade, least=1)
        check_whole_number("LogSpacedSteps: stop", self.stop, optional=True)

    def next_step(self, after: int) -> int | None:
        """The first step of the series after the step `after`."""
        step, exponent = 0, 0
        while step <= after:
            step = round(10 ** (exponent / self.per_decade))
            exponent += 1
        return step if self.stop is None or step <= self.stop else None


@checks_its_arguments
@dataclass(frozen=True)
class EveryNEpochs(Schedule):
    """The end of every n-th epoch.

    Raises:
        ValueError: If `n` is less than 1.

    Example:
        >>> [epoch for epoch in range(6) if EveryNEpochs(2).at_epoch_end(epoch)]
        [1, 3, 5]
    """

    n: int = 1

    def __post_init__(self) -> None:
        check_whole_number("EveryNEpochs: n", self.n, least=1)

    def at_epoch_end(self, epoch: int) -> bool:
        """Whether this is the end of an n-th epoch."""
        return (epoch + 1) % self.n == 0


@checks_its_arguments
@dataclass(frozen=True)
class AtCheckpoints(Schedule):
    """After a checkpoint is saved: the first one, then each one whose step has grown enough.

    Args:
        min_growth: Minimum ratio of the checkpoint's step to the step of the last measured checkpoint. 1.0 measures at
            every checkpoint.

    Raises:
        ValueError: If `min_growth` is less than 1.

    Example:
        >>> AtCheckpoints().at_checkpoint(step=120, previous=100)
        False
    """

    min_growth: float = 1.5

    def __post_init__(self) -> None:
        check_number("AtCheckpoints: min_growth", self.min_growth, least=1)

    def at_checkpoint(self, step: int, previous: int | None) -> bool:
        """Whether the step has grown at least by the factor `min_growth`."""
        return previous is None or step >= self.min_growth * previous


@checks_its_arguments
@dataclass(frozen=True)
class AtFitEnd(Schedule):
    """The end of `trainer.fit`, with the final weights.

    Example:
        >>> AtFitEnd().at_fit_end()
        True
    """

    def at_fit_end(self) -> bool:
        """Always."""
        return True
