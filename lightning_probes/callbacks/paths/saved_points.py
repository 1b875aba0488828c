"""Saved states of a run, as points in parameter space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_probes.functional.finite import are_finite
from lightning_probes.probing.run.init_state import StateDict, read_file, state_in
from lightning_probes.probing.run.replay import step_of
from lightning_probes.probing.run.saved import found
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.probing.values import check_all
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting.panels.base import thin

SavedState: TypeAlias = str | PathLike[str] | Mapping[str, Any]
SavedStates: TypeAlias = SavedState | Sequence[SavedState]

_MOST = 64  # states that are in memory at a time
_ARGUMENT = "checkpoints"


class SavedPoint(NamedTuple):
    """A state that was saved: what it is called, its step if that is known, and its tensors on the CPU."""

    label: str
    step: int | None
    state: StateDict


def check_sources(value: object) -> None:
    """The argument is paths, patterns or state dicts.

    Raises:
        ValueError: If it is not; names `checkpoints`.
    """

    def fits(source: object) -> bool:
        return isinstance(source, (str, PathLike, Mapping)) and source != ""

    if value is not None:
        wanted = "a path, a pattern such as 'runs/*.ckpt', a state dict, a list of those, or None"
        check_all(_ARGUMENT, value, fits, wanted)


def given_points(sources: SavedStates, module: nn.Module, say: Speaker) -> list[SavedPoint]:
    """The states that the user has passed: in the order of their steps if all are known, else as given.

    Args:
        sources: What was passed.
        module: The module that they are of.
        say: Reports each that is left out.

    Raises:
        ValueError: If one can't be read, or is of another model; names `checkpoints`.
    """
    asked = [sources] if isinstance(sources, (str, PathLike, Mapping)) else sources
    files = [path for each in asked for path in ([each] if isinstance(each, Mapping) else found(each))]
    return _in_order([_point(each, k, module) for k, each in enumerate(files)], module, say)


def own_points(view: ModelView, say: Speaker) -> list[SavedPoint]:
    """The states that the run has saved before the present step, as far as they can be read.

    Args:
        view: The model at the present step.
        say: Reports each that is left out.
    """
    points: list[SavedPoint] = []
    for k, path in enumerate(view.run.saved):
        try:
            points.append(_point(path, k, view.module))
        except ValueError as error:
            say.warn(str(error))
    before = [point for point in points if point.step is not None and point.step < view.step]
    return _in_order(before, view.module, say)


def _point(source: Path | Mapping[str, Any], number: int, module: nn.Module) -> SavedPoint:
    content: Any = source
    if isinstance(source, Path):
        try:
            content = read_file(source, _ARGUMENT)
        except OSError as error:
            raise ValueError(f"{_ARGUMENT}={str(source)!r} can't be opened: pass paths of files ({error})") from error
    state = state_in(content, module, _ARGUMENT)
    step = step_of(content) if "global_step" in content else None
    name = source.stem if isinstance(source, Path) else f"checkpoint {number + 1}"
    return SavedPoint(name if step is None else f"step {step}", step, state)


def _in_order(points: Sequence[SavedPoint], module: nn.Module, say: Speaker) -> list[SavedPoint]:
    """By step, one of each step, and no more than can be held. Where training had diverged a point is left out."""
    steps = [point.step for point in points]
    if None not in steps:
        by_step = {point.step: point for point in reversed(points)}
        points = [by_step[step] for step in sorted(by_step, key=int)]  # type: ignore[arg-type]
    finite = [are_finite({name: point.state[name] for name, _ in module.named_parameters()}) for point in points]
    if not all(finite):
        left = ", ".join(point.label for point, sound in zip(points, finite, strict=True) if not sound)
        say.warn(f"checkpoints with weights that are not finite are left out of the plane: {left}")
    return thin([point for point, sound in zip(points, finite, strict=True) if sound], _MOST)


def check_points(view: ModelView, sources: SavedStates | None, least: int, most: float, say: Speaker) -> None:
    """There are enough states to lay a plane through, before training time is spent.

    Args:
        view: The model.
        sources: The states that were passed; None for those that the run saves.
        least: How many there must be, beside the present one.
        most: How many there may be.
        say: Reports each that is left out.

    Raises:
        MisconfigurationException: If the run saves too few; names `checkpoints`.
        ValueError: If those that were passed can't be read, or their number does not fit.
    """
    if sources is None:
        if view.run.keeps < least:
            raise MisconfigurationException(
                f"a plane through the trajectory needs {least} saved checkpoints or more, and this run keeps "
                f"{view.run.keeps:.0f} at most: add ModelCheckpoint(save_top_k=-1, every_n_epochs=1), or pass "
                "checkpoints="
            )
        return
    if view.processes.rank == 0:
        number = len(given_points(sources, view.module, say))
        if not least <= number <= most:
            wanted = f"{least} or more" if most == float("inf") else f"{least} or {most:.0f}"
            raise ValueError(f"checkpoints has {number} different states, and the plane needs {wanted}")
