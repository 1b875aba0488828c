"""Claim: an intervention changes training, with the arguments that it is checked with."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_probes.testing.digests import digest
from lightning_probes.testing.fitting import fit
from lightning_probes.testing.subject import Subject
from lightning_probes.testing.zoo import Case


def changing(subject: Subject, case: Case) -> None:
    """It ends in other weights than when it is off; else all that is checked of it holds of nothing."""
    assert _weights(case, subject.make(case)) != _weights(case, subject.make_off(case)), (
        "it changes no weight with these arguments: pass some with which it does, beside off="
    )


def _weights(case: Case, callback: Any) -> str:
    with TemporaryDirectory() as directory:
        return digest(list(fit(case.make, [callback], Path(directory)).module.state_dict().values()))
