"""One of the processes that `processes` starts: `python -m lightning_probes.testing.one_process JOB RANK`."""

from __future__ import annotations

import gc
import pickle
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from lightning_probes.testing.digests import digest
from lightning_probes.testing.fitting import fit
from lightning_probes.testing.processes import (
    PROCESSES,
    STEPS,
    Job,
    Seen,
    made_for,
    record,
    subject_of,
    weights_of,
)


def main(path: Path, rank: int) -> None:
    """Run a job, and write the result to the folder of the job file."""
    torch.set_num_threads(1)
    job: Job = pickle.loads(path.read_bytes())
    subject, case = subject_of(job)
    callback = made_for(subject, case)
    numbers = record(callback)
    errors: list[str] = []

    def train(callbacks: list[Any], where: str) -> str:
        strategy = DDPStrategy(
            process_group_backend="gloo", timeout=timedelta(seconds=job.seconds), find_unused_parameters=True
        )
        every: dict[str, Any] = {
            "strategy": strategy,
            "devices": PROCESSES,
            "max_steps": STEPS,
            "num_sanity_val_steps": 0,
        }

        def drive(trainer: Any, made: Any) -> None:
            try:
                trainer.fit(made.module, **made.arguments())
            except Exception as error:  # any error of the callback
                errors.append(f"{type(error).__name__}: {error}")

        return digest(weights_of(fit(case.make, callbacks, path.parent / where, drive=drive, **every).module))

    without, trained = train([], "without"), train([callback], "with")
    off = train([made_for(subject, case, off=True)], "off") if subject.intervenes and not errors else trained
    changed = trained if subject.intervenes else ""
    path.with_name(f"{rank}.pkl").write_bytes(pickle.dumps(Seen(numbers, (off, without), changed, "; ".join(errors))))
    if dist.is_initialized():  # threads of gloo that are still alive at exit can abort the process
        gc.collect()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
