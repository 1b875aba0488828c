"""`check_probe`: checks that any callback keeps the promises of this package."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_probes.testing.changing import changing
from lightning_probes.testing.declaring import declaring
from lightning_probes.testing.failing import failing
from lightning_probes.testing.processes import processes
from lightning_probes.testing.refusing import refusing
from lightning_probes.testing.resumed import resumed
from lightning_probes.testing.subject import Subject
from lightning_probes.testing.undisturbed import repeatable, undisturbed
from lightning_probes.testing.zoo import CASES, EVERY_CASE, Case

Claim = Callable[[Subject, Case], None]
_CLAIMS: tuple[Claim, ...] = (repeatable, resumed, failing, refusing, declaring, processes)
_CLAIMS_OF_INTERVENTIONS: tuple[Claim, ...] = (changing,)


@dataclass(frozen=True)
class Check:
    """One claim about one callback on one case of the zoo. When called, it raises AssertionError if the claim fails."""

    subject: Subject
    claim: Claim
    case: Case

    @property
    def __name__(self) -> str:  # pytest uses it as the name of the parameter
        return f"{self.claim.__name__}-{self.case.name}"

    def __call__(self) -> None:
        """Check the claim."""
        try:
            self.claim(self.subject, self.case)
        except AssertionError as error:
            where = f"{self.subject.name}, {self.claim.__name__}, case {self.case.name!r}"
            raise AssertionError(f"{where}: {error}") from error.__cause__


def cases(
    kind: type[Any], *, refuses: Collection[str] = (), off: Mapping[str, Any] | None = None, **arguments: Any
) -> list[Check]:
    """The checks of `check_probe` one by one, for parametrizing a test.

    Args:
        kind: See `check_probe`.
        refuses: See `check_probe`.
        off: See `check_probe`.
        arguments: See `check_probe`.

    Returns:
        Checks. Call each without arguments.

    Example:
        >>> from lightning_probes import FisherTrace
        >>> [check.__name__ for check in cases(FisherTrace)][:2]
        ['undisturbed-tuple_batch', 'undisturbed-list_batch']
    """
    refused = frozenset([refuses] if isinstance(refuses, str) else refuses)
    unknown = sorted(refused - EVERY_CASE.keys())
    if unknown:
        raise ValueError(f"refuses: there is no case {unknown[0]!r}; the cases are {', '.join(EVERY_CASE)}")
    subject = Subject(kind, arguments, refused, off or {})
    _check_off(subject, off is not None)
    everywhere = [Check(subject, undisturbed, case) for case in CASES.values()]
    claims = [*_CLAIMS, *(_CLAIMS_OF_INTERVENTIONS if subject.off else ())]
    return [*everywhere, *(Check(subject, claim, subject.plain) for claim in claims)]


def _check_off(subject: Subject, given: bool) -> None:
    unknown = sorted(subject.off.keys() - subject.takes.keys())
    if unknown:
        raise ValueError(f"off: {subject.name} takes no {unknown[0]!r}; it takes {', '.join(subject.takes)}")
    if given and not subject.intervenes:
        raise ValueError(f"off: {subject.name} is no intervention and never changes training: leave off= away")
    if subject.intervenes and not given:
        raise ValueError(
            f"off: {subject.name} changes training: say with which arguments it does not, such as "
            "off={'coefficient': 0}, or off={} if it never changes what is trained"
        )


def check_probe(
    kind: type[Any], *, refuses: Collection[str] = (), off: Mapping[str, Any] | None = None, **arguments: Any
) -> None:
    """Check that a probe, monitor or intervention keeps the promises of this package.

    It runs real fits of the zoo's models on the CPU, one of them in two processes, and takes a minute or two. It
    checks these claims:

    - On every case, training ends with the same bits as without the callback: weights, buffers, gradients, optimizer
      state, random generators, hooks, settings of the process, and metrics logged by the user. The callback keeps no
      autograd graph. An intervention is off meanwhile. In the other claims it is not, and must change the weights.
    - It measures the same numbers in a second run, in a resumed run, and in two processes.
    - An error in a measurement reaches the user, or becomes a warning with `on_error="warn"`. Training is not affected.
    - Each event takes the passes that `price` declares, and each flag and headline number has a reading.
    - If it can't measure a model, it raises before the first step. For a wrong argument, its constructor raises.

    Args:
        kind: The class. Other processes import it, so it must be at the top level of a module or test file.
        refuses: Names of cases that it correctly refuses, by a `MisconfigurationException` in `prepare`.
        off: Arguments with which an intervention leaves training unchanged, such as `{"coefficient": 0}`; `{}` if it
            never changes the weights.
        arguments: Arguments for its constructor, besides those that a case of the zoo needs. By default a probe
            measures at step 2 and at the end, on 24 samples in micro-batches of 8; other kinds work at steps 2 and 4.

    Raises:
        AssertionError: If claims fail; the message has all failed claims, each with its case and the difference.
        ValueError: If `refuses` or `off` can't be right.

    Example:
        >>> from lightning_probes import FisherTrace
        >>> check_probe(FisherTrace, labels="exact")  # doctest: +SKIP
    """
    failures = []
    for check in cases(kind, refuses=refuses, off=off, **arguments):
        try:
            check()
        except AssertionError as error:
            failures.append(str(error))
    if failures:
        count = f"{len(failures)} checks failed:\n" if len(failures) > 1 else ""
        raise AssertionError(count + "\n".join(failures))
