"""The callback that is checked, and how it is created for a case of the zoo."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import DataLoader, Dataset

from lightning_probes.probing import Intervention, Probe
from lightning_probes.probing.schedules import AtFitEnd, EveryNSteps, Schedule
from lightning_probes.testing.zoo import CASES, Case, Fit
from lightning_probes.testing.zoo.data import BATCH, SAMPLES

# Resuming, errors and two processes are checked on the first of these cases that the callback does not refuse.
_PLAIN = ("cnn", "list_batch", "regression", "multi_label", "lstm", "dict_with_labels", "gan", "resnet", "vit")


@dataclass(frozen=True)
class Subject:
    """The callback that is checked.

    Attributes:
        kind: The class of the callback.
        arguments: Arguments for its constructor, on every case.
        refuses: Names of the cases that it refuses to measure.
        off: Arguments with which it leaves training unchanged; none for a callback that always does.
    """

    kind: type[Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    off: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.kind.__name__

    @property
    def has_data(self) -> bool:
        """Whether it is a probe, which measures on data of its own that several processes share."""
        return issubclass(self.kind, Probe)

    @property
    def intervenes(self) -> bool:
        """Whether it changes training on purpose, unless it is off."""
        return issubclass(self.kind, Intervention)

    @property
    def reads_training(self) -> bool:
        """Whether it reads what training computes: a monitor."""
        return not self.has_data and not self.intervenes

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the class."""
        return inspect.signature(self.kind).parameters

    @property
    def plain(self) -> Case:
        """The case on which all claims are checked; on other cases only undisturbed training is."""
        for name in _PLAIN:
            if name in CASES and name not in self.refuses:
                return CASES[name]
        raise AssertionError(f"{self.name} refuses all of {', '.join(_PLAIN)}, but must measure at least one of them")

    def and_at_the_end(self, steps: Schedule) -> Schedule | list[Schedule]:
        """A schedule, for a probe with the end of the fit too. Other kinds work only at optimizer steps."""
        return [steps, AtFitEnd()] if self.has_data else steps

    def make(self, case: Case, **arguments: Any) -> Any:
        """A new callback for a case. By default it uses little data, and measures at step 2 and at the end."""
        taken = self.takes
        steps = EveryNSteps(2, start=2, stop=2) if self.has_data else EveryNSteps(2, start=2)
        small = {"num_samples": 24, "micro_batch_size": 8, "schedule": self.and_at_the_end(steps)}
        small = {name: value for name, value in small.items() if name in taken}
        own = {name: value for name, value in arguments.items() if name in taken}
        made = self.kind(**{**small, **case.arguments_for(self.kind), **self.arguments, **own})
        for name in arguments.keys() - own.keys():  # its own constructor may not take an argument of the base class
            setattr(made, name, arguments[name])
        return made

    def make_off(self, case: Case, **arguments: Any) -> Any:
        """A new callback that leaves training as it is."""
        return self.make(case, **{**arguments, **self.off})


class Repeated(Dataset[Any]):
    """Repeats the samples of the first batch, so that all batches are the same, also in a resumed run."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return self.data[index % BATCH]


def repeating(case: Case) -> Callable[[], Fit]:
    """A case whose training, when resumed, continues exactly as if it had not been interrupted.

    Lightning restores neither the random generators nor the position in a shuffled loader. With such loaders a resumed
    training itself would differ.
    """

    def make() -> Fit:
        made = case.make()
        loader = made.train
        again = DataLoader(Repeated(loader.dataset), batch_size=loader.batch_size, collate_fn=loader.collate_fn)
        return replace(made, train=again)

    return make
