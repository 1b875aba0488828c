"""The callback that is checked, and how it is made on a case of the zoo."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import DataLoader, Dataset

from lightning_probes.probing import Probe
from lightning_probes.probing.schedules import AtFitEnd, EveryNSteps, Schedule
from lightning_probes.testing.zoo import CASES, Case, Fit
from lightning_probes.testing.zoo.data import BATCH, SAMPLES

# What a callback does to a break, an error or a second process is tried on the first of these that it measures.
_PLAIN = ("cnn", "list_batch", "regression", "multi_label", "lstm", "dict_with_labels", "gan")


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        kind: The class of the callback.
        arguments: Arguments that it is made with, wherever.
        refuses: Names of the cases that it can't measure, and says so.
    """

    kind: type[Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.kind.__name__

    @property
    def has_data(self) -> bool:
        """Whether it measures on data of its own, which several processes share, and not on what training computes."""
        return issubclass(self.kind, Probe)

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the class."""
        return inspect.signature(self.kind).parameters

    @property
    def plain(self) -> Case:
        """The case on which more than an undisturbed training is checked."""
        for name in _PLAIN:
            if name not in self.refuses:
                return CASES[name]
        raise AssertionError(f"{self.name} refuses all of {', '.join(_PLAIN)}, and is checked on one of them at least")

    def and_at_the_end(self, steps: Schedule) -> Schedule | list[Schedule]:
        """A schedule, and for a probe the end of the fit; other kinds work at optimizer steps only."""
        return [steps, AtFitEnd()] if self.has_data else steps

    def make(self, case: Case, **arguments: Any) -> Any:
        """A new callback for a case: on little data, at step 2 and at the end unless told otherwise."""
        taken = self.takes
        steps = EveryNSteps(2, start=2, stop=2) if self.has_data else EveryNSteps(2, start=2)
        small = {"num_samples": 24, "micro_batch_size": 8, "schedule": self.and_at_the_end(steps)}
        small = {name: value for name, value in small.items() if name in taken}
        own = {name: value for name, value in arguments.items() if name in taken}
        made = self.kind(**{**small, **case.arguments_for(self.kind), **self.arguments, **own})
        for name in arguments.keys() - own.keys():  # a constructor of its own may fix what its base takes
            setattr(made, name, arguments[name])
        return made


class Repeated(Dataset[Any]):
    """The samples of the first batch, again and again: every batch is the same, also after a break."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return self.data[index % BATCH]


def repeating(case: Case) -> Callable[[], Fit]:
    """Makes a case whose training goes on after a break exactly as if there had been none.

    Lightning restores neither the generators nor the place in a shuffled loader. What differs after a break is then the
    training, and not the measurement.
    """

    def make() -> Fit:
        made = case.make()
        loader = made.train
        again = DataLoader(Repeated(loader.dataset), batch_size=loader.batch_size, collate_fn=loader.collate_fn)
        return replace(made, train=again)

    return make
