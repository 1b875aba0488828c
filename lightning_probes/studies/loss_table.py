"""The matrix of losses, tasks × configurations, from the records of runs."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from lightning_probes.reporting.wandb.runs import RunRecord
from lightning_probes.studies.greedy import Matrix
from lightning_probes.studies.run_records import FAILED, GOING, as_number, found, keys_of

_GROWS = re.compile(
    r"(?<![a-z])(acc|accuracy|f1|auc|auroc|auprc|r2|precision|recall|bleu|rouge|iou|dice|reward|psnr|ssim)(?![a-z])"
)
_FALLS = re.compile(
    r"(?<![a-z])(loss|err|error|nll|bpb|ppl|perplexity|mse|rmse|mae|wer|cer|fid|cross_entropy)(?![a-z])"
)


@dataclass(frozen=True)
class LossTable:
    """What the runs of each task and each configuration ended with; both in the order in which they first appear.

    Attributes:
        tasks: The tasks.
        configs: The configurations.
        losses: Tasks × configurations, lower is better, means over repeats. NaN: no run has finished.
        scores: The same of the metric that judges, which is the loss itself unless a test metric was named.
    """

    tasks: tuple[str, ...]
    configs: tuple[dict[str, Any], ...]
    losses: Matrix
    scores: Matrix


def loss_table(
    runs: Sequence[RunRecord],
    where: str,
    task: str,
    metric: str,
    configs: Sequence[str],
    minimize: bool | None,
    test_metric: str | None,
    budget: str | None,
) -> LossTable:
    """Build the table. What is left out is reported by warnings.

    Args:
        runs: The runs.
        where: What was given as `runs`, for messages.
        task: See `portfolio`, as for all that follow.
        metric: Config keys are looked up in the config, metrics in the summary.
        configs: The keys whose values make a configuration.
        minimize: The direction of both metrics.
        test_metric: The metric that judges.
        budget: Key in the summary that says how far a run went.

    Raises:
        ValueError: If no table can be made.
    """
    metrics = list(dict.fromkeys([metric, test_metric or metric]))
    sign = _sign(metrics, minimize)
    ended = _ended(runs, where)
    keys = [task, *configs]
    _check_known("config key", keys, ended, where, [run.config for run in ended])
    _check_known("metric", [*metrics, *([budget] if budget else [])], ended, where, [run.summary for run in ended])
    ended = _complete(ended, keys, where)
    if budget is not None:
        ended = _whole(ended, task, budget)
    tasks = list(dict.fromkeys(str(found(run.config, task)) for run in ended))
    choices = {_identity(chosen): chosen for run in reversed(ended) if (chosen := _chosen(run, configs))}
    identities = list(dict.fromkeys(_identity(_chosen(run, configs)) for run in ended))
    if len(identities) < 2:
        raise ValueError(
            f"runs={where} holds {len(ended)} finished runs of one configuration, where a portfolio chooses among "
            f"several: pass configs= whose values differ between runs (found {json.dumps(_chosen(ended[0], configs))})"
        )
    shape = len(tasks), len(identities)
    cells: dict[tuple[int, int], list[RunRecord]] = {}
    for run in ended:
        place = tasks.index(str(found(run.config, task))), identities.index(_identity(_chosen(run, configs)))
        cells.setdefault(place, []).append(run)
    losses, *others = (_matrix(cells, shape, key, sign) for key in metrics)
    return _reported(
        LossTable(tuple(tasks), tuple(choices[each] for each in identities), losses, [losses, *others][-1])
    )


def _sign(metrics: Sequence[str], minimize: bool | None) -> float:
    """1 if lower is better, -1 if higher is."""
    grows = [name for name in metrics if _GROWS.search(name.lower()) and not _FALLS.search(name.lower())]
    falls = [name for name in metrics if _FALLS.search(name.lower()) and not _GROWS.search(name.lower())]
    if grows and falls:
        raise ValueError(
            f"metric and test_metric have different directions ({falls[0]!r} falls and {grows[0]!r} grows as a model "
            "gets better): pass a test_metric= of the same direction as metric="
        )
    if grows and minimize is None:
        raise ValueError(
            f"metric={grows[0]!r} grows as a model gets better by its name: pass minimize=False (--maximize on the "
            "command line), or minimize=True (--minimize) if it does not"
        )
    against = grows if minimize else falls
    if against and minimize is not None:
        word = "minimized, but grows" if minimize else "maximized, but falls"
        warnings.warn(f"{against[0]!r} is {word} as a model gets better by its name", stacklevel=4)
    return -1.0 if minimize is False else 1.0


def _ended(runs: Sequence[RunRecord], where: str) -> list[RunRecord]:
    """The runs that are no longer going on."""
    if not runs:
        raise ValueError(f"runs={where} holds no runs: name the project or the file that has them")
    going = [run.name for run in runs if run.state in GOING]
    ended = [run for run in runs if run.state not in GOING]
    if all(run.state in FAILED for run in ended):
        raise ValueError(
            f"none of the {len(runs)} runs of runs={where} has finished ({len(going)} still going on, {len(ended)} "
            "failed): wait for them, or name others"
        )
    if going:
        warnings.warn(f"{_named(going)} still going on and left out", stacklevel=4)
    return ended


def _check_known(kind: str, keys: Iterable[str], ended: Sequence[RunRecord], where: str, given: Sequence[Any]) -> None:
    """Each key must be in at least one run."""
    for key in keys:
        if all(found(mapping, key) is None for mapping in given):
            there = list(dict.fromkeys(each for mapping in given for each in keys_of(mapping) if each[:1] != "_"))
            near = get_close_matches(key, there, 3, 0.5) or there[:10]
            raise ValueError(
                f"none of the {len(ended)} runs of runs={where} has the {kind} {key!r}: pass one that they have, such "
                f"as {', '.join(map(repr, near)) or 'none'}"
            )


def _complete(ended: Sequence[RunRecord], keys: Sequence[str], where: str) -> list[RunRecord]:
    """The runs that have all config keys: W&B fills nothing in for runs older than a key."""
    complete = ended
    for key in keys:
        lacking = [run.name for run in complete if found(run.config, key) is None]
        complete = [run for run in complete if found(run.config, key) is not None]
        if lacking:
            warnings.warn(f"{_named(lacking)} without the config key {key!r} and left out", stacklevel=4)
    if not complete:
        raise ValueError(f"no run of runs={where} has all of the config keys {', '.join(keys)}: leave some out")
    return list(complete)


def _whole(ended: Sequence[RunRecord], task: str, budget: str) -> list[RunRecord]:
    """The runs that went as far as the farthest of their task: the loss of the others is at another budget."""
    far: dict[str, float] = {}
    for run in ended:
        key = str(found(run.config, task))
        far[key] = max(far.get(key, 0.0), as_number(found(run.summary, budget)) or 0.0)
    short = [
        run for run in ended
        if run.state not in FAILED
        and (as_number(found(run.summary, budget)) or 0.0) < far[str(found(run.config, task))]
    ]  # fmt: skip
    if short:
        names = _named([run.name for run in short])
        warnings.warn(f"{names} stopped before the largest {budget!r} of the task, and left out", stacklevel=4)
    left_out = set(map(id, short))
    return [run for run in ended if id(run) not in left_out]


def _matrix(cells: dict[tuple[int, int], list[RunRecord]], shape: tuple[int, int], metric: str, sign: float) -> Matrix:
    """Means over repeats.

    A run that ended without a finite number says that its configuration diverges: it counts as the worst number of its
    task. A run that failed, or logged no number, says nothing if another run of the same kind has finished.
    """
    values = {
        place: [
            sign * number for run in runs
            if run.state not in FAILED and (number := as_number(found(run.summary, metric))) is not None
        ]
        for place, runs in cells.items()
    }  # fmt: skip
    matrix = np.full(shape, np.nan)
    for row in range(shape[0]):
        numbers = [number for (where, _), each in values.items() if where == row for number in each]
        worst = max((number for number in numbers if number == number), default=np.nan)
        for column in range(shape[1]):
            repeats = np.array(values.get((row, column), []))
            if not np.isnan(repeats).all():
                matrix[row, column] = np.where(np.isnan(repeats), worst, repeats).mean()
    return matrix


def _reported(table: LossTable) -> LossTable:
    """The table without tasks that have no loss at all, after a word on what is missing."""
    empty = [bool(row.all()) for row in np.isnan(table.losses)]
    if all(empty):
        raise ValueError("no finished run has a finite value of the metric: pass a metric= that is logged at the end")
    if any(empty):
        named = ", ".join(name for name, is_empty in zip(table.tasks, empty, strict=True) if is_empty)
        warnings.warn(f"left out the tasks without a finished run: {named}", stacklevel=4)
    tasks = tuple(name for name, is_empty in zip(table.tasks, empty, strict=True) if not is_empty)
    kept = [not is_empty for is_empty in empty]
    losses, scores = table.losses[kept], table.scores[kept]
    missing = int(np.isnan(losses).sum())
    if missing:
        warnings.warn(
            f"{missing} of {losses.size} pairs of a task and a configuration have no finite loss of a finished run, "
            "and count as the worst of the task",
            stacklevel=4,
        )
    if len(tasks) == 1:
        warnings.warn(
            f"all runs are of one task ({tasks[0]!r}), so the portfolio is its best configuration, and nothing can be "
            "said of other tasks",
            stacklevel=4,
        )
    return LossTable(tasks, table.configs, losses, scores)


def _chosen(run: RunRecord, configs: Sequence[str]) -> dict[str, Any]:
    return {key: found(run.config, key) for key in configs}


def _identity(chosen: dict[str, Any]) -> str:
    """Equal for equal configurations, also where one run has 1 and another 1.0."""
    return json.dumps([_as_float(value) for value in chosen.values()], sort_keys=True, default=str)


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _named(names: Collection[str]) -> str:
    """How many runs, and the first of them.

    Example:
        >>> _named(["a", "b", "c", "d"])
        '4 runs (a, b, c, …)'
    """
    first = ", ".join([*names][:3]) + ", …" * (len(names) > 3)
    return f"{len(names)} run{'s' * (len(names) != 1)} ({first})"
