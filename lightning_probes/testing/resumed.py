"""Claim: a run that is interrupted and resumed measures the same as a run in one piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_probes.probing.schedules import EveryNSteps
from lightning_probes.testing.digests import digest
from lightning_probes.testing.fitting import Run, fit
from lightning_probes.testing.numbers import differences, numbers_of, numbers_of_history
from lightning_probes.testing.subject import Subject, repeating
from lightning_probes.testing.zoo import Case, Fit

BREAK, END = 7, 15  # steps: in the middle of the second of three epochs


def resumed(subject: Subject, case: Case) -> None:
    """A resumed run measures at the same steps, with the same numbers, as a run in one piece."""
    make = repeating(case)

    def callback() -> Any:
        return subject.make(case, schedule=subject.and_at_the_end(EveryNSteps(3)))

    whole, second = callback(), callback()
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        unbroken = go_on(Path(one), None, [whole], make)
        checkpoint = begin(Path(two), [callback()], make)
        broken = go_on(Path(two), checkpoint, [second], make)
    steps = [[int(row["step"]) for row in each.history] for each in (second, whole)]
    assert steps[0] == steps[1], f"in a resumed run its history has the steps {steps[0]}, but should have {steps[1]}"
    found, expected = ({**numbers_of_history(each), **numbers_of(each.results.values())} for each in (second, whole))
    differ = differences(found, expected, rel=1e-9, tiny=1e-12)
    assert not differ, (
        f"a run that was interrupted at step {BREAK} and resumed measures other numbers than a run in one piece: "
        f"{differ}. Keep values for the next measurement in self.carried, which each checkpoint holds, and draw random "
        "numbers from view.generator(...)"
    )
    weights, other = (digest(list(run.module.state_dict().values())) for run in (broken, unbroken))
    assert not subject.intervenes or weights == other, (
        f"a run resumed after a break at step {BREAK} trains to other weights than a run in one piece: what one step "
        "leaves to the next belongs in self.carried, which each checkpoint holds"
    )


def begin(directory: Path, callbacks: Sequence[Callback], make: Callable[[], Fit]) -> Path:
    """Stop in the middle of the second of three epochs, with a checkpoint after which nothing was measured."""
    directory.mkdir(exist_ok=True)
    every: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": 3, "max_steps": BREAK}
    fit(make, [*callbacks, _saves(directory)], directory, **every)
    return directory / f"step={BREAK}.ckpt"


def go_on(directory: Path, checkpoint: Path | None, callbacks: Sequence[Callback], make: Callable[[], Fit]) -> Run:
    """Train to the end, from a checkpoint or from the start."""
    every: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": 3, "ckpt_path": checkpoint}
    run = fit(make, [*callbacks, _saves(directory)], directory, **every)
    assert run.trainer.global_step == END
    return run


def _saves(directory: Path) -> ModelCheckpoint:
    return ModelCheckpoint(directory, filename="{step}", every_n_train_steps=BREAK, save_top_k=-1)
