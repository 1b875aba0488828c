"""Claim: two processes measure the same numbers as one process, and train as without the callback.

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
        case: Name of the case.
        seconds: How long a process waits for the other one.
    """

    kind: Reference
    arguments: dict[str, Any]
    case: str
    seconds: int = SECONDS // 3


@dataclass(frozen=True)
class Seen:
    """The result of one process.

    Attributes:
        numbers: The numbers that this process measured, by step.
        weights: Hashes of the final weights, with the callback and without it.
        error: The error that ended the fit; empty if there was none.
    """

    numbers: dict[int, Numbers]
    weights: tuple[str, str]
    error: str


def processes(subject: Subject, case: Case) -> None:
    """At step 0 two processes measure the numbers of one. At each step they agree. Their weights are as without it."""
    if not (dist.is_available() and dist.is_gloo_available()):
        return
    one = _in_this_process(subject, case) if subject.has_data else {}
    everyone = _launch(subject, case)
    for rank, seen in enumerate(everyone):
        assert not seen.error, f"process {rank} of {PROCESSES} failed: {seen.error}"
        assert seen.weights[0] == seen.weights[1], f"training was disturbed in process {rank} of {PROCESSES}"
        for step, numbers in seen.numbers.items():
            differ = differences(numbers, everyone[0].numbers.get(step, {}), rel=1e-6, tiny=1e-9)
            assert not differ, f"at step {step} process {rank} measures other numbers than process 0: {differ}. {_SUM}"
    if subject.has_data:
        differ = differences(everyone[0].numbers.get(0, {}), one, rel=1e-3, tiny=1e-6)
        assert not differ, f"two processes measure other numbers than one: {differ}. {_SUM}"


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


def made_for(subject: Subject, case: Case) -> Any:
    """The callback of each process. It measures at steps 0 and 2, with another initialisation than the module's."""
    more: dict[str, Any] = {"schedule": EveryNSteps(2, stop=2)}
    taken = subject.takes
    if "data" in taken and "data" not in subject.arguments:
        more["data"] = "train"
    if "init_state" in taken and "init_state" not in subject.arguments:
        state = fit(case.make, max_steps=0).module.state_dict()
        more["init_state"] = {key: value * 0.5 if value.is_floating_point() else value for key, value in state.items()}
    return subject.make(case, **more)


def _in_this_process(subject: Subject, case: Case) -> Numbers:
    with TemporaryDirectory() as directory:
        callback = made_for(subject, case)
        numbers = record(callback)
        fit(case.make, [callback], Path(directory), max_steps=1, num_sanity_val_steps=0)
    return numbers.get(0, {})


def _launch(subject: Subject, case: Case) -> list[Seen]:
    with TemporaryDirectory() as directory:
        job = Path(directory, "job.pkl")
        try:
            job.write_bytes(pickle.dumps(Job(reference_to(subject.kind), dict(subject.arguments), case.name)))
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
    return Subject(job.kind.load(), job.arguments), CASES[job.case]


def weights_of(module: torch.nn.Module) -> list[Any]:
    """The parameters and buffers of a trained module, which are compared."""
    return [*module.parameters(), *module.buffers()]
