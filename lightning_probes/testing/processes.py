"""Claim: two processes measure the same numbers as one process, and train as without the callback.

A probe measures the same samples in one process. A monitor is compared with one process whose batches are those of
both together: its gradients are the mean of theirs, so up to rounding the steps of training are the same.

Each process is started as `python -m lightning_probes.testing.one_process JOB RANK`. They communicate on 127.0.0.1.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from lightning_probes.probing.schedules import EveryNSteps
from lightning_probes.testing.fitting import fit
from lightning_probes.testing.global_batches import of_all_processes
from lightning_probes.testing.measuring import Method, put_around
from lightning_probes.testing.numbers import Numbers, differences, numbers_of
from lightning_probes.testing.references import Reference, reference_to
from lightning_probes.testing.subject import Subject
from lightning_probes.testing.zoo import CASES, Case

PROCESSES, SECONDS, STEPS = 2, 180, 3


@dataclass(frozen=True)
class Job:
    """The task of each process.

    Attributes:
        kind: A reference to the class of the callback.
        arguments: Arguments for its constructor.
        off: Arguments with which it leaves training unchanged.
        case: Name of the case.
        seconds: How long a process waits for the other one.
    """

    kind: Reference
    arguments: dict[str, Any]
    off: dict[str, Any]
    case: str
    seconds: int = SECONDS // 3


@dataclass(frozen=True)
class Seen:
    """The result of one process.

    Attributes:
        numbers: The numbers that this process measured, by step.
        weights: Hashes of the final weights, with the callback (an intervention is off) and without it.
        changed: Hash of the final weights with an intervention that is not off; empty for other kinds.
        error: The error that ended the fit; empty if there was none.
    """

    numbers: dict[int, Numbers]
    weights: tuple[str, str]
    changed: str
    error: str


def processes(subject: Subject, case: Case) -> None:
    """Two processes measure the numbers of one, and agree. Their weights are as without the callback."""
    if not (dist.is_available() and dist.is_gloo_available()):
        return
    if subject.reads_training:
        case = next((CASES[name] for name in _MEANS_OVER_SAMPLES if name not in subject.refuses), case)
    one = _in_this_process(subject, case)
    everyone = _launch(subject, case)
    for rank, seen in enumerate(everyone):
        assert not seen.error, f"process {rank} of {PROCESSES} failed: {seen.error}"
        assert seen.weights[0] == seen.weights[1], f"training was disturbed in process {rank} of {PROCESSES}"
        assert seen.changed == everyone[0].changed, (
            f"process {rank} trains to other weights than process 0: change its gradients by the same in each process"
        )
        for step, numbers in seen.numbers.items():
            differ = differences(numbers, everyone[0].numbers.get(step, {}), rel=1e-6, tiny=1e-9)
            assert not differ, f"at step {step} process {rank} measures other numbers than process 0: {differ}. {_SUM}"
    for step, expected in one.items():
        differ = differences(everyone[0].numbers.get(step, {}), expected, rel=1e-5, tiny=1e-6)
        assert not differ, f"two processes measure other numbers than one at step {step}: {differ}. {_SUM}"


# Cases without BatchNorm, in which the loss of a batch is the mean over its parts.
_MEANS_OVER_SAMPLES = ("list_batch", "regression", "multi_label")
_SUM = (
    "Each process has a part of the samples: sum over all samples with view.mean, view.per_batch or "
    "view.sum_over_processes, and compute ratios after that"
)


def record(callback: Any) -> dict[int, Numbers]:
    """A dict to which each measurement adds its results, by step."""
    seen: dict[int, Numbers] = {}

    def recorded(measure: Method, moment: Any) -> Any:
        results = list(measure(moment))
        seen.setdefault(int(moment.step), {}).update(numbers_of(results))
        return results

    put_around(callback, recorded)
    return seen


def made_for(subject: Subject, case: Case, off: bool = False) -> Any:
    """The callback of each process. It measures at steps 0 and 2, with another initialisation than the module's."""
    more: dict[str, Any] = {"schedule": EveryNSteps(2, stop=2)}
    taken = subject.takes
    if "data" in taken and "data" not in subject.arguments:
        more["data"] = "train"
    if "init_state" in taken and "init_state" not in subject.arguments:
        state = fit(case.make, max_steps=0).module.state_dict()
        more["init_state"] = {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()}
    return subject.make_off(case, **more) if off else subject.make(case, **more)


def _in_this_process(subject: Subject, case: Case) -> dict[int, Numbers]:
    """What one process measures that two have to measure too, by step."""
    if (subject.reads_training and case.name not in _MEANS_OVER_SAMPLES) or subject.intervenes:
        return {}
    # Probes are compared before the first step, because batches of two processes train otherwise.
    make, steps = (of_all_processes(case.make, PROCESSES), STEPS) if subject.reads_training else (case.make, 1)
    with TemporaryDirectory() as directory:
        callback = made_for(subject, case)
        numbers = record(callback)
        fit(make, [callback], Path(directory), max_steps=steps, num_sanity_val_steps=0)
    return numbers


def _launch(subject: Subject, case: Case) -> list[Seen]:
    with TemporaryDirectory() as directory:
        job = Path(directory, "job.pkl")
        try:
            job.write_bytes(
                pickle.dumps(Job(reference_to(subject.kind), dict(subject.arguments), dict(subject.off), case.name))
            )
        except Exception as error:  # any error of the arguments
            raise AssertionError(
                f"its arguments can't be sent to another process ({error}): functions among them must be at the top "
                "level of a module"
            ) from error
        running = [_start(job, rank, port) for port in [_free_port()] for rank in range(PROCESSES)]
        said = ["", ""]
        try:
            for rank, process in enumerate(running):
                _, said[rank] = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"two processes did not finish within {SECONDS} s. One waits forever if it calls an exchange, such as "
                "view.sum_over_processes, that the other does not call"
            ) from None
        finally:
            for process in running:
                process.kill()
                process.communicate()
        results = [Path(directory, f"{rank}.pkl") for rank in range(PROCESSES)]
        for result, text in zip(results, said, strict=True):
            assert result.exists(), f"a process ended without a result. Its last output:\n{text[-2000:]}"
        return [pickle.loads(result.read_bytes()) for result in results]


def _start(job: Path, rank: int, port: int) -> subprocess.Popen[str]:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(PROCESSES), "LOCAL_RANK": str(rank),
        "NODE_RANK": "0", "PYTHONWARNINGS": "ignore", **({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_probes.testing.one_process", str(job), str(rank)],
        env=environment, cwd=job.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def subject_of(job: Job) -> tuple[Subject, Case]:
    """The callback and the case of a job."""
    return Subject(job.kind.load(), job.arguments, off=job.off), CASES[job.case]


def weights_of(module: torch.nn.Module) -> list[Any]:
    """The parameters and buffers of a trained module, which are compared."""
    return [*module.parameters(), *module.buffers()]
