"""A probe's measurements in a JSON-lines file beside the run, so that a checkpoint need not hold them.

A checkpoint keeps the file's path, how long it was, and the hash of that much: what was appended later belongs to steps
that a resumed run takes again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np

from lightning_probes.results import Curve, Flag, Heatmap, Result, Scalar

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Scalar, Curve, Heatmap, Flag)}


class Journal:
    """Lines that are appended to a file, and found again.

    Args:
        path: The file; None until it is known.
        lines: What an earlier journal held.
        are_written: Whether the file holds these lines already, and no more.
    """

    def __init__(self, path: Path | None = None, lines: Iterable[str] = (), are_written: bool = False) -> None:
        self.path = path
        self._digest = ""
        self._length = 0
        self._unwritten: list[bytes] = []
        for line in lines:
            self.add(line)
        self._written = self._length if are_written else 0
        if are_written:
            self._unwritten = []

    def add(self, line: str) -> None:
        """Add a line; it is in the file after the next `flush`."""
        content = line.encode() + b"\n"
        self._digest = _extended(self._digest, content)
        self._length += len(content)
        self._unwritten.append(content)

    def flush(self) -> None:
        """Write what was added to the file.

        Raises:
            OSError: If that can't be; it may be tried again.
        """
        if self.path is None or (self._written and not self._unwritten):
            return
        content = b"".join(self._unwritten)
        if self._written:
            with self.path.open("r+b") as file:
                file.seek(self._written)  # where a line that was written in part began
                file.write(content)
                file.truncate()
        else:
            write_atomically(self.path, content)
        self._written, self._unwritten = self._length, []

    def moved(self, path: Path) -> Journal:
        """The same lines for another file."""
        lines = b"".join(self._unwritten)
        if self._written and self.path is not None:
            lines = self.path.read_bytes()[: self._written] + lines
        return Journal(path, lines.decode().splitlines())

    def state_dict(self) -> dict[str, Any]:
        """Where to find what there is now, which is written first.

        Raises:
            OSError: If it can't be.
        """
        self.flush()
        return {"path": None if self.path is None else str(self.path), "offset": self._length, "sha256": self._digest}

    @staticmethod
    def read(state: Mapping[str, Any], beside: Path | None = None) -> tuple[Path | None, list[str] | None]:
        """The lines of an earlier journal at the moment of its `state_dict`.

        Args:
            state: That state.
            beside: The checkpoint it was in, which may have moved along with the file.

        Returns:
            The file and the lines; None if there is no such file, or what it holds is not what it held.
        """
        for path in places(state["path"], beside):
            try:
                with path.open("rb") as file:
                    content = file.read(state["offset"])
            except OSError:
                continue
            if functools.reduce(_extended, content.splitlines(keepends=True), "") == state["sha256"]:
                return path, content.decode().splitlines()
        return None, None


def encoded(step: int, epoch: int, results: Mapping[str, Result], extra: Mapping[str, float]) -> str:
    """One event as a line of JSON (with NaN and Infinity, as Python writes them).

    Example:
        >>> encoded(3, 0, {"fisher/trace": Scalar("fisher/trace", 2.5)}, {"fisher/seconds": 0.5})[:60]
        '{"step": 3, "epoch": 0, "fisher/seconds": 0.5, "results": [{'
    """
    described = [
        {"kind": type(r).__name__, **{f.name: _plain(getattr(r, f.name)) for f in fields(r)}} for r in results.values()
    ]
    return json.dumps({"step": step, "epoch": epoch, **extra, "results": described})


def decoded(line: str) -> tuple[int, int, dict[str, Result], dict[str, float]]:
    """What `encoded` was given.

    Example:
        >>> decoded(encoded(3, 0, {"fisher/trace": Scalar("fisher/trace", 2.5)}, {}))[2]
        {'fisher/trace': Scalar(key='fisher/trace', value=2.5, standard_error=None)}
    """
    extra = json.loads(line)
    step, epoch, described = extra.pop("step"), extra.pop("epoch"), extra.pop("results")
    for values in described:
        if "row_labels" in values:  # a list of no rows does not tell how long they are
            values["values"] = np.reshape(values["values"], (len(values["row_labels"]), len(values["column_labels"])))
    results = [_KINDS[values.pop("kind")](**values) for values in described]
    return step, epoch, {result.key: result for result in results}, extra


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which is at `path` whole once the block is done, or not at all if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is there whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def unused(path: Path) -> Path:
    """This path, or one like it that no file has."""
    number = 0
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def places(path: str | None, beside: Path | None) -> list[Path]:
    """Where a file that a checkpoint names may be: where it was, or where it moved to with the checkpoint."""
    if path is None:
        return []
    *_, folder, name = ("", *PureWindowsPath(path).parts)  # which knows the separators of every system
    near = [] if beside is None else [beside.parent, beside.parent / folder, beside.parent.parent / folder]
    return [Path(path), *(place / name for place in near)]


def _extended(digest: str, line: bytes) -> str:
    """Hash of some lines, whose hash is `digest`, and one more."""
    return hashlib.sha256(digest.encode() + line).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
