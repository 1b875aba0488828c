"""One cell of the table: a tool on a task and a model, in a process of its own and with a time limit."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def apart(function: Callable[..., Row], *arguments: Any, limit: float, threads: int = 2, clock: str = "wall") -> Row:
    """What a function returns in a process of its own; how it ended instead, if it did not return.

    Args:
        function: At the top of a module.
        *arguments: What can be pickled.
        limit: Seconds.
        threads: Of PyTorch.
        clock: Of `timing`.
    """
    ways = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    if "forkserver" in ways:
        context.set_forkserver_preload(["torch", "lightning", "lightning_probes"])  # imported once, for all cells
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments, threads, clock))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return {"exception": f"not done after {limit:.0f} s"}
        answer: Row = receiver.recv()
        return answer
    except EOFError:
        process.join()
        return {"exception": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _answer(sender: Any, function: Callable[..., Row], arguments: Any, threads: int, clock: str) -> None:
    import torch

    from benchmarks.timing import use_clock

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning_probes").setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(threads)
    use_clock(clock)
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = {"exception": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"}
    sender.send(answer)


def timed(task_name: str, model: str, tool: str, directory: Path, rounds: int, scale: float, limit: float) -> Row:
    """Seconds, ratio to the plain pass and error of a tool."""
    from benchmarks.tasks import task
    from benchmarks.timing import alternate
    from benchmarks.work import load

    found = task(task_name)
    exact = reference(task_name, model, directory, scale)
    work = load(model, directory, found.many_passes, scale)
    work.extras["reference"] = exact
    plain = found.plain(load(model, directory, found.many_passes, scale))  # a model that no tool has hooked
    plain()
    run = found.tools[tool](work)
    error = found.error(work, run(), exact)  # the first call of both is not timed
    timing = alternate(plain, run, rounds, limit=limit)
    low, high = timing.quartiles
    extras = {key: value for key, value in work.extras.items() if key != "reference"}
    return {
        "seconds": statistics.median(timing.tool), "plain_seconds": statistics.median(timing.plain),
        "ratio": timing.ratio, "ratio_low": low, "ratio_high": high, "rounds": len(timing.tool), "error": error,
        "samples": work.samples, "micro_batch_size": work.micro_batch_size, **extras,
    }  # fmt: skip


def remembered(task_name: str, model: str, tool: str, directory: Path, scale: float) -> Row:
    """Peak memory of a tool and of the plain pass."""
    from benchmarks.memory import peak_mib, return_memory
    from benchmarks.tasks import task
    from benchmarks.work import load

    found = task(task_name)
    exact = reference(task_name, model, directory, scale)
    return_memory()
    work = load(model, directory, found.many_passes, scale)
    work.extras["reference"] = exact
    plain = found.plain(load(model, directory, found.many_passes, scale))
    plain()
    run = found.tools[tool](work)
    return {"plain_peak_mib": peak_mib(plain), "peak_mib": peak_mib(run)}


def referenced(task_name: str, model: str, directory: Path, scale: float) -> Row:
    """Have the model trained and the reference computed, so that no tool's time is spent on it."""
    reference(task_name, model, directory, scale)
    return {}


def reference(task_name: str, model: str, directory: Path, scale: float) -> Any:
    """What all tools are compared with: computed by the first that asks, and kept for this run."""
    from benchmarks.tasks import task
    from benchmarks.work import load

    path = directory / f"{task_name}-{model}-{scale}.reference"
    if not path.exists():
        found = task(task_name)
        path.write_bytes(pickle.dumps(found.reference(load(model, directory, found.many_passes, scale))))
    return pickle.loads(path.read_bytes())
