"""`check_probe`: what this package promises of its own callbacks, tried on anybody's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Check:
    """One claim about one callback on one case of the zoo. Call it: it raises AssertionError where the claim fails."""

    subject: Subject
    claim: Claim
    case: Case

    @property
    def __name__(self) -> str:  # by which pytest names a parameter
        return f"{self.claim.__name__}-{self.case.name}"

    def __call__(self) -> None:
        """Try the claim."""
        try:
            self.claim(self.subject, self.case)
        except AssertionError as error:
            where = f"{self.subject.name}, {self.claim.__name__}, case {self.case.name!r}"
            raise AssertionError(f"{where}: {error}") from error.__cause__


def cases(kind: type[Any], *, refuses: Collection[str] = (), **arguments: Any) -> list[Check]:
    """The checks of `check_probe` one by one, to parametrize a test with.

    Args:
        kind: See `check_probe`.
        refuses: See `check_probe`.
        arguments: See `check_probe`.

    Returns:
        Checks, each of which is called without arguments.

    Example:
        >>> from lightning_probes import FisherTrace
        >>> [check.__name__ for check in cases(FisherTrace)][:2]
        ['undisturbed-tuple_batch', 'undisturbed-list_batch']
    """
    refused = frozenset([refuses] if isinstance(refuses, str) else refuses)
    unknown = sorted(refused - EVERY_CASE.keys())
    if unknown:
        raise ValueError(f"refuses: there is no case {unknown[0]!r}; the cases are {', '.join(EVERY_CASE)}")
    subject = Subject(kind, arguments, refused)
    everywhere = [Check(subject, undisturbed, case) for case in CASES.values()]
    return [*everywhere, *(Check(subject, claim, subject.plain) for claim in _CLAIMS)]


def check_probe(kind: type[Any], *, refuses: Collection[str] = (), **arguments: Any) -> None:
    """Check that a probe, or another callback of this package's kinds, keeps the promises of this package.

    On the zoo, in real fits on the CPU, with two processes for one of them; it takes a minute or two. What is checked:

    - Training ends bit for bit as without the callback, on every case: weights, buffers, gradients, optimizer state,
      generators, hooks, settings of the process, and what the user logged. It keeps no graph of autograd.
    - The numbers are the same in a second run, after a break, and in two processes as in one.
    - An error inside reaches the user, or under `on_error="warn"` ends in a warning, and training is as it would be.
    - Each event takes the passes that its `price` declares, and each flag and headline number has a reading.
    - What it can't measure it refuses before the first step; an argument that can't be right, where it is given.

    Args:
        kind: The class. Two processes import it, so that it stands at the top level of a module or test file.
        refuses: Names of the cases that it rightly refuses; it must do so by `MisconfigurationException` in `prepare`.
        arguments: Arguments to make it with, beside those that a case of the zoo needs. By default a probe
            measures at step 2 and at the end, on 24 samples in micro-batches of 8, and other kinds work at steps 2 and
            4.

    Raises:
        AssertionError: If a claim fails; says which, on which case, and what differed. All claims are tried.

    Example:
        >>> from lightning_probes import FisherTrace
        >>> check_probe(FisherTrace, labels="exact")  # doctest: +SKIP
    """
    failures = []
    for check in cases(kind, refuses=refuses, **arguments):
        try:
            check()
        except AssertionError as error:
            failures.append(str(error))
    if failures:
        count = f"{len(failures)} checks failed:\n" if len(failures) > 1 else ""
        raise AssertionError(count + "\n".join(failures))
