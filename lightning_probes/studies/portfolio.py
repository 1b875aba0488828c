"""Which configurations first? A greedy portfolio from finished runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_probes.probing.values import check_whole_number, refuse
from lightning_probes.studies.greedy import (
    average_order,
    best_so_far,
    greedy_order,
    normalised,
    score_of_choice,
    score_of_random_search,
)
from lightning_probes.studies.loss_table import LossTable, loss_table
from lightning_probes.studies.run_records import records
from lightning_probes.studies.sweep_files import config_file, sweep_file, write_yaml


class HeldOut(NamedTuple):
    """What a task gets that the choice did not see, on the scale from 0 (its best configuration) to 1 (its worst).

    Means over tasks; each task is left out once, and the orders are made from the others.

    Attributes:
        k: How many configurations are tried.
        portfolio: The first k of the portfolio.
        random: k at random, in expectation.
        average: The k best on average.
        better: On how many tasks the portfolio is below random search.
    """

    k: int
    portfolio: float
    random: float
    average: float
    better: int


@dataclass(frozen=True)
class Portfolio:
    """Configurations in the order in which to try them.

    Attributes:
        table: The losses that it was chosen from.
        names: The name of each config key on the command line.
        metric: The metric that it was chosen by.
        minimize: Its direction.
        order: Columns of the table, as the greedy portfolio adds them.
        by_average: Columns of the table by their mean normalised loss: the other order.
        reached: Mean over tasks of the best normalised loss after each configuration of `order`.
        reached_by_average: The same for `by_average`.
        held_out: What a task gets that was left out, for k from 1 on; empty with one task.
    """

    table: LossTable
    names: Mapping[str, str]
    metric: str
    minimize: bool
    order: tuple[int, ...]
    by_average: tuple[int, ...]
    reached: tuple[float, ...]
    reached_by_average: tuple[float, ...]
    held_out: tuple[HeldOut, ...]

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The configurations, the first to try first."""
        return [dict(self.table.configs[column]) for column in self.order]

    @property
    def wins(self) -> list[list[str]]:
        """For each configuration the tasks on which it is the best of the portfolio; of equals, the first."""
        best = normalised(self.table.losses)[:, list(self.order)].argmin(axis=1)
        return [
            [task for task, place in zip(self.table.tasks, best, strict=True) if place == rank]
            for rank in range(len(self.order))
        ]

    def __str__(self) -> str:
        """The tables that `lightning-probes portfolio` prints."""
        tasks, configs = self.table.losses.shape
        lines = [
            f"{tasks} tasks, {configs} configurations. Losses: 0 is the best configuration of a task, 1 the worst."
        ]
        lines += ["", "portfolio: each one lowers the mean over tasks of the best loss so far the most"]
        for rank, (config, loss, won) in enumerate(zip(self.configs, self.reached, self.wins, strict=True)):
            lines.append(f"{rank:3d}  {loss:.3f}  {_in_line(config)}  best on {len(won)}: {', '.join(won) or '-'}")
        lines += ["", "on average: the lowest mean loss first"]
        for rank, (column, loss) in enumerate(zip(self.by_average, self.reached_by_average, strict=True)):
            lines.append(f"{rank:3d}  {loss:.3f}  {_in_line(self.table.configs[column])}")
        if self.held_out:
            lines += ["", "on a task that was left out", "  k  portfolio  random search  on average  below random on"]
            for k, portfolio, chance, average, better in self.held_out:
                lines.append(f"{k:3d}{portfolio:11.3f}{chance:15.3f}{average:12.3f}{better:9d} of {tasks}")
        return "\n".join(lines)

    def write(
        self,
        folder: str | PathLike[str],
        sweep: str | PathLike[str] | None = None,
        *,
        program: str = "train.py",
        base: str | None = None,
        halving: int | None = None,
        project: str | None = None,
        force: bool = False,
    ) -> list[Path]:
        """Write each configuration as a config of LightningCLI, and a sweep that tries them in order.

        Args:
            folder: For `0.yaml`, `1.yaml`, ….
            sweep: The sweep's file; none by default. Agents must run where `folder` leads to the files.
            program: The script that the sweep starts, a LightningCLI.
            base: A config that all runs share, such as `"base.yaml"`.
            halving: How often a whole run logs the metric: then runs are ended at a sixteenth and at a quarter of that
                if three quarters of the runs are better (successive halving). By default all runs are whole.
            project: The W&B project of the sweep.
            force: Whether files that are there may be replaced.

        Returns:
            The files.

        Raises:
            FileExistsError: If a file is there and `force` is False. Then nothing is written.
            ValueError: If `halving` is too small for three rungs.
        """
        if halving is not None:
            check_whole_number("halving", halving, least=16)
        contents: dict[Path, tuple[str, Any]] = {}
        for rank, (config, loss) in enumerate(zip(self.configs, self.reached, strict=True)):
            comment = f"Mean normalised {self.metric} of the portfolio up to this configuration: {loss:.3f}"
            contents[Path(folder) / f"{rank}.yaml"] = comment, config_file(config, self.names)
        if sweep is not None:
            paths = [path.as_posix() for path in contents]
            content = sweep_file(paths, self.metric, self.minimize, program, base, halving, project)
            contents[Path(sweep)] = "A portfolio: the only parameter is the path of a config", content
        write_yaml(contents, force)
        return [*contents]


def portfolio(
    runs: Any,
    *,
    task: str,
    metric: str,
    configs: Sequence[str] | Mapping[str, str],
    k: int = 8,
    minimize: bool | None = None,
    test_metric: str | None = None,
    budget: str | None = None,
    seed: int | None = None,
) -> Portfolio:
    """Choose the configurations to try first on a new task, from finished runs on other tasks.

    The losses of each task are scaled to [0, 1] over its configurations, after a mean over repeats. The portfolio grows
    by the configuration that most lowers the mean over tasks of the best loss so far (Feurer et al. 2022,
    arXiv:2007.04074). A pair of task and configuration without a finished run counts as 1. So does a run that ended
    without a finite number: with repeats it counts as the worst one of its task. Runs that are going on are left out,
    and so are runs that failed if another one of the same task and configuration has finished. A warning names them.

    Args:
        runs: `"entity/project"` at W&B; the path of a CSV file (as W&B exports it); a list of dicts or a DataFrame,
            one row a run, with config and metrics in one.
        task: Config key that says which task a run is of, such as `"dataset"`.
        metric: Key of the loss in the summary, such as `"val/loss"`.
        configs: The config keys whose values make a configuration. A key of a nested config has dots. A dict also gives
            each key its name on the command line: `{"lr": "model.lr"}`.
        k: The most configurations. The portfolio ends before if nothing lowers the loss.
        minimize: Whether lower is better. By default it is, but a metric whose name says otherwise is an error.
        test_metric: Key of the metric that judges on tasks that were left out, while `metric` chooses. Without it
            the loss by which a configuration is chosen judges as well, which flatters all of the compared ways.
        budget: Key in the summary that says how far a run went, such as `"trainer/global_step"`. Runs that went less
            far than the farthest of their task are left out: hyperband stopped them, but W&B lists them as finished.
        seed: Among equal configurations the first one is chosen; with a seed, one at random.

    Returns:
        The portfolio; `print` shows it, `write` makes files for a sweep of it.

    Raises:
        ValueError: If the runs can't be read, or lack what was named.

    Example:
        >>> losses = {"digits": (0.0, 1.0, 0.4), "letters": (1.0, 0.0, 0.4)}
        >>> rows = [{"dataset": name, "lr": lr, "val/loss": loss}
        ...         for name, each in losses.items() for lr, loss in zip((0.1, 0.2, 0.3), each)]
        >>> chosen = portfolio(rows, task="dataset", metric="val/loss", configs=["lr"])
        >>> chosen.configs, chosen.reached
        ([{'lr': 0.3}, {'lr': 0.1}, {'lr': 0.2}], (0.4, 0.2, 0.0))
    """
    for name, value in (("task", task), ("metric", metric)):
        if not isinstance(value, str) or not value:
            refuse(name, "the key of a run", value)
    if isinstance(configs, str) or not configs or not all(isinstance(each, str) and each for each in configs):
        refuse("configs", "a list of at least one config key", configs)
    check_whole_number("k", k, least=1)
    names = dict(configs) if isinstance(configs, Mapping) else {key: key for key in configs}
    where = repr(str(runs)) if isinstance(runs, (str, PathLike)) else f"<{type(runs).__name__}>"
    table = loss_table(records(runs), where, task, metric, list(names), minimize, test_metric, budget)
    losses = normalised(table.losses)
    order, by_average = greedy_order(losses, k, seed), average_order(losses, k)
    reached, reached_by_average = (tuple(best_so_far(losses, each).tolist()) for each in (order, by_average))
    held_out = _leave_one_out(table, min(k, losses.shape[1]), seed)
    return Portfolio(
        table, names, metric, minimize is not False, order, by_average, reached, reached_by_average, held_out
    )


def _leave_one_out(table: LossTable, most: int, seed: int | None) -> tuple[HeldOut, ...]:
    losses, scores = normalised(table.losses), normalised(table.scores)
    if len(losses) < 2:
        return ()
    others = [np.delete(losses, row, axis=0) for row in range(len(losses))]
    orders = [(greedy_order(rest, most, seed), average_order(rest, most)) for rest in others]
    found = []
    for k in range(1, most + 1):
        rows = np.array([
            (
                score_of_choice(loss, score, greedy[:k]),
                score_of_random_search(loss, score, k),
                score_of_choice(loss, score, average[:k]),
            )
            for loss, score, (greedy, average) in zip(losses, scores, orders, strict=True)
        ])  # fmt: skip
        greedy_mean, random_mean, average_mean = rows.mean(axis=0).tolist()
        found.append(HeldOut(k, greedy_mean, random_mean, average_mean, int((rows[:, 0] < rows[:, 1]).sum())))
    return tuple(found)


def _in_line(config: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in config.items())
