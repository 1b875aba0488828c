"""A portfolio as files: one config a configuration, and a sweep over the files' paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ETA = 4
"""Successive halving keeps one of so many runs at each rung."""
RUNGS = 2
"""Before the whole budget there is a quarter of it, and a sixteenth."""


def config_file(chosen: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A configuration as a config of LightningCLI.

    Args:
        chosen: Value of each key of the runs' config.
        names: The name of each key on the command line; a dot is a level.

    Raises:
        ValueError: If one name is a part of another.

    Example:
        >>> config_file({"lr": 0.1, "aug": "none"}, {"lr": "model.lr", "aug": "data.aug"})
        {'model': {'lr': 0.1}, 'data': {'aug': 'none'}}
    """
    content: dict[str, Any] = {}
    for key, value in chosen.items():
        *levels, last = names[key].split(".")
        inner: Any = content
        for level in levels:
            inner = inner.setdefault(level, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last in inner:
            raise ValueError(f"configs={list(names.values())} name {names[key]!r} and a part of it: leave one out")
        inner[last] = value
    return content


def sweep_file(
    paths: Sequence[str],
    metric: str,
    minimize: bool,
    program: str,
    base: str | None,
    halving: int | None,
    project: str | None,
) -> dict[str, Any]:
    """A sweep whose only parameter is the path of a config, tried in the order of the portfolio.

    Args:
        paths: The files.
        metric: What the sweep is about.
        minimize: Its direction.
        program: The script, a LightningCLI.
        base: A config that all runs share; the portfolio's wins over it.
        halving: How often a whole run logs the metric, for runs that are ended early; None for whole runs.
        project: The W&B project.
    """
    shared = ["--config", base] if base else []
    rule = {"early_terminate": {"type": "hyperband", "max_iter": halving, "s": RUNGS, "eta": ETA}} if halving else {}
    return {
        **({"project": project} if project else {}),
        "program": program,
        "method": "grid",
        "metric": {"name": metric, "goal": "minimize" if minimize else "maximize"},
        **rule,
        "parameters": {"config": {"values": list(paths)}},
        "command": ["${env}", "${interpreter}", "${program}", "fit", *shared, "${args}"],
    }


def write_yaml(contents: Mapping[Path, tuple[str, Any]], force: bool) -> None:
    """Write files, each with a comment on top; none of them if one is there already, unless forced.

    Args:
        contents: Comment and content of each file.
        force: Whether files that are there may be replaced.

    Raises:
        FileExistsError: If a file is there.
    """
    import yaml  # type: ignore[import-untyped]

    there = [str(path) for path in contents if path.exists()]
    if there and not force:
        raise FileExistsError(
            f"{', '.join(there[:3])}{', …' * (len(there) > 3)} would be overwritten: name another folder, or pass "
            "force=True (--force on the command line)"
        )
    texts = {path: f"# {comment}\n{_dumped(yaml, content)}" for path, (comment, content) in contents.items()}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _dumped(yaml: Any, content: Any) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text
