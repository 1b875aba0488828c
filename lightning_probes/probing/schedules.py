"""When a probe measures. A schedule is a value: it knows a rule and no run, so one object serves many probes."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_probes.probing.values import check_number, check_whole_number


# No dataclass itself: command lines that build probes would then accept no subclass where a Schedule is asked for.
class Schedule:
    """Never. Subclass it and override the moments at which to measure.

    A step is the logger's own step (`trainer/global_step`). Whatever several schedules ask for, a probe measures at
    most once a step.

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
        """The first step later than `after` that is due, or None. Called with -1 before the first step."""
        return None

    def at_epoch_end(self, epoch: int) -> bool:
        """Whether the end of this epoch (counted from 0) is due."""
        return False

    def at_checkpoint(self, step: int, previous: int | None) -> bool:
        """Whether a checkpoint of this step is due, when the checkpoint of step `previous` was the last measured."""
        return False

    def at_fit_end(self) -> bool:
        """Whether the end of `trainer.fit` is due."""
        return False


@dataclass(frozen=True)
class EveryNSteps(Schedule):
    """Steps `start`, `start + n`, `start + 2n`, ... up to and including `stop`.

    Args:
        n: Distance between two measurements, in steps.
        start: First step; 0 is the untouched initialisation.
        stop: Last step that may be measured; None for no end.

    Raises:
        ValueError: If `n` is less than 1, `start` is negative or `stop` no number.

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
        """The first multiple later than `after`."""
        step = self.start if after < self.start else after + self.n - (after - self.start) % self.n
        return step if self.stop is None or step <= self.stop else None


@dataclass(frozen=True)
class LogSpacedSteps(Schedule):
    """Steps spaced evenly on a logarithmic axis and dense at the start: 0, 1, 2, 3, ...

    Most of what happens early in training happens within few steps; a late step is worth less.

    Args:
        per_decade: Measurements for each factor of ten.
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
        """The first step of the series later than `after`."""
        step, exponent = 0, 0
        while step <= after:
            step = round(10 ** (exponent / self.per_decade))
            exponent += 1
        return step if self.stop is None or step <= self.stop else None


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
        """Whether n more epochs are complete."""
        return (epoch + 1) % self.n == 0


@dataclass(frozen=True)
class AtCheckpoints(Schedule):
    """After whatever writes a checkpoint: the first one, then each whose step has grown enough.

    Args:
        min_growth: Factor by which the step must have grown since the last checkpoint measured; 1.0 for every one.

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
        """Whether the step has grown by `min_growth`."""
        return previous is None or step >= self.min_growth * previous


@dataclass(frozen=True)
class AtFitEnd(Schedule):
    """The end of `trainer.fit`, on the final weights.

    Example:
        >>> AtFitEnd().at_fit_end()
        True
    """

    def at_fit_end(self) -> bool:
        """Always."""
        return True
