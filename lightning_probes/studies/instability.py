"""From which step on do trainings with other orders of the data end in one basin?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations, pairwise
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.values import check_switch, check_whole_number, in_short, refuse
from lightning_probes.reporting import log_event
from lightning_probes.reporting.wandb.group import join
from lightning_probes.studies.family import PARENT, Family, child_name, pair_name
from lightning_probes.studies.folder import Folder
from lightning_probes.studies.instability_result import NAME, InstabilityResult
from lightning_probes.studies.side_by_side import check_picklable, run_all

_OWN = ("other", "schedule", "name", "on_flag", "on_error")


def instability(
    make_trainer: Callable[[], Trainer],
    make_module: Callable[[], LightningModule],
    make_data: Callable[[int], Any],
    *,
    spawn_steps: Sequence[int],
    children: int = 2,
    seed: int = 0,
    connectivity: Mapping[str, Any] | None = None,
    directory: str | PathLike[str] = NAME,
    processes: int = 1,
    logger: Any = None,
    force: bool = False,
) -> InstabilityResult:
    """Train copies of a network on from some steps with other orders of the data, and measure barriers between them.

    A parent is trained up to the last spawn step, and leaves a full checkpoint at each. From each of them, children
    are trained to the end: the same weights, optimizer and schedule, another order. A network is stable to the noise of
    SGD from the step on from which the error on the line between their ends rises by less than 2 % over the mean of the
    ends (Frankle et al. 2020, arXiv:1912.05671).

    All generators are seeded before each function is called, and again when training starts, so all that a child draws
    follows its seed: the order, augmentation and dropout.

    What is finished is kept in `directory`. If the study was interrupted, even killed, the same call continues it,
    repeats no finished training, and ends with the same numbers.

    Cost: one training up to the last spawn step, `children` for each spawn step from there to the end, and one
    measurement of `ModeConnectivity` for each pair. Disk: one checkpoint for each spawn step and each child.

    Args:
        make_trainer: Makes the Trainer of one training, with new callbacks and loggers, on one device. W&B runs of its
            loggers become a group.
        make_module: Makes the module. The generators are seeded before, so each call gives the same initialisation.
        make_data: `make_data(seed)` makes the data in the order of a seed: a DataLoader, a LightningDataModule, or
            `{"train": loader, "val": loader}`. A loader that shuffles without a generator of its own follows the seed.
        spawn_steps: Optimizer steps at which children part from the parent, in increasing order; 0 is the
            initialisation. If a step lies within an epoch, a child ends this epoch with the first batches of its order.
        children: How many from each spawn step. Each pair is compared.
        seed: Seeds the initialisation and the parent's order; child j has the order of `seed` + j.
        connectivity: Further arguments of `ModeConnectivity`, such as `{"num_samples": 2048, "num_alphas": 25}`.
        directory: The folder of the study.
        processes: How many trainings run side by side. With more than one, the functions must be importable.
        logger: One logger or several for the table and the picture. The trainings use those of their Trainers.
        force: Replace another study in `directory`.

    Returns:
        A row for each pair of children. `to_dict()` gives columns for a DataFrame, `figure()` the picture.

    Raises:
        ValueError: If an argument is out of range, or a spawn step lies beyond the end of training.
        MisconfigurationException: If the functions do not make what is needed; the message names the function. Both are
            found before the first training.
        FileExistsError: If `directory` holds something else, and `force` is False.
        RuntimeError: If training ends before a spawn step.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
        >>> def make_data(seed):
        ...     order = torch.Generator().manual_seed(seed)
        ...     return torch.utils.data.DataLoader(RandomDataset(32, 64), batch_size=8, shuffle=True, generator=order)
        >>> instability(Trainer, BoringModel, make_data, spawn_steps=[20, 0])
        Traceback (most recent call last):
        ValueError: spawn_steps must be whole numbers in increasing order, such as (0, 100), got [20, 0]
    """
    steps = _checked_steps(spawn_steps)
    check_whole_number("children", children, least=2)
    check_whole_number("seed", seed)
    check_whole_number("processes", processes, least=1)
    check_switch("force", force)
    given = _checked_connectivity(connectivity)
    if processes > 1:
        check_picklable(
            {"make_trainer": make_trainer, "make_module": make_module, "make_data": make_data, "connectivity": given}
        )
    folder = Folder(Path(directory).absolute())
    family = Family(make_trainer, make_module, make_data, int(seed), given, folder)
    seeds = [int(seed) + number for number in range(1, int(children) + 1)]
    with isolate_rng():
        settings = _settings(family, steps, seeds)
        trainings = [PARENT, *(child_name(step, each) for step in steps for each in seeds)]
        pairs = [(step, *pair) for step in steps for pair in combinations(seeds, 2)]
        parts = [*trainings, *(pair_name(*pair) for pair in pairs)]
        files = [*(f"{part}.json" for part in parts), *(f"{part}.ckpt" for part in trainings[1:])]
        files += [family.start(step).name for step in steps]
        family = replace(family, group=folder.open(settings, files, force))
        _work(family, steps, seeds, pairs, processes)
        folder.tidy()
    rows = [folder.finished(pair_name(*pair)) for pair in pairs]
    known = [folder.finished(name) for name in trainings]
    result = InstabilityResult(rows, [{key: each[key] for key in ("spawn_step", "seed", "step")} for each in known])
    _report(result, logger, family.group)
    return result


def _work(
    family: Family, steps: tuple[int, ...], seeds: Sequence[int], pairs: Sequence[tuple[int, int, int]], processes: int
) -> None:
    """Train and measure all that is not finished yet."""
    folder = family.folder
    if folder.finished(PARENT) is None:
        family.train_parent(steps)
    missing = [(step, seed) for step in steps for seed in seeds if folder.finished(child_name(step, seed)) is None]
    if done := len(steps) * len(seeds) - len(missing):
        Speaker(NAME).info(f"{done} of {done + len(missing)} children are finished already in {str(folder.path)!r}")
    run_all([partial(family.train_child, *child) for child in missing], processes)
    unmeasured = [pair for pair in pairs if folder.finished(pair_name(*pair)) is None]
    run_all([partial(family.measure, *pair) for pair in unmeasured], processes)


def _settings(family: Family, steps: tuple[int, ...], seeds: Sequence[int]) -> dict[str, Any]:
    """All that makes two studies different, found by setting trainings up without a step of them.

    Raises:
        ValueError: If a spawn step lies beyond the end.
        MisconfigurationException: If a function does not make what is needed.
    """
    initial = family.initial()
    plans = {seed: family.plan(seed, checks=seed == seeds[0]) for seed in seeds}
    plan = plans[seeds[0]]
    if steps[-1] >= plan.steps:
        raise ValueError(
            f"spawn_steps={list(steps)} must lie before the end of training, which is at step {plan.steps:g}: leave "
            "the last ones out, or let make_trainer train longer"
        )
    if family.plan(seeds[0]).batches != plan.batches:
        raise MisconfigurationException(
            f"make_data({seeds[0]}) gives other batches at each call, so a study that was interrupted would not "
            "continue in the same order: draw the order from the seed alone"
        )
    for first, second in combinations(seeds, 2):
        if plans[first].batches == plans[second].batches:
            raise MisconfigurationException(
                f"make_data({first}) and make_data({second}) give the same batches, but copies are to be trained in "
                "different orders: shuffle, such as with DataLoader(..., shuffle=True, "
                "generator=torch.Generator().manual_seed(seed))"
            )
    connectivity = {name: in_short(value) for name, value in family.connectivity.items()}
    return {
        "spawn_steps": list(steps), "seed": family.seed, "children": len(seeds), "connectivity": connectivity,
        "initialisation": initial, **asdict(plan), "batches": {seed: each.batches for seed, each in plans.items()},
    }  # fmt: skip


def _checked_steps(value: Sequence[int]) -> tuple[int, ...]:
    steps = list(value) if isinstance(value, (list, tuple, range)) else []
    whole = all(isinstance(step, Integral) and not isinstance(step, bool) and int(step) >= 0 for step in steps)
    if not steps or not whole or any(later <= earlier for earlier, later in pairwise(steps)):
        refuse("spawn_steps", "whole numbers in increasing order, such as (0, 100)", value)
    return tuple(int(step) for step in steps)


def _checked_connectivity(value: Mapping[str, Any] | None) -> dict[str, Any]:
    given = {} if value is None else dict(value)
    if own := [name for name in _OWN if name in given]:
        raise ValueError(f"connectivity must leave out {own[0]!r}, which the study sets itself")
    return given


def _report(result: InstabilityResult, logger: Any, group: str) -> None:
    loggers = [] if logger is None else list(logger) if isinstance(logger, (list, tuple)) else [logger]
    join(loggers, group, "table")
    for event in result.events():
        log_event(loggers, event)
    if not result.events():
        Speaker(NAME).warn("no barrier could be measured, because in each pair an end, or the line, is not finite")
