"""A probe's measurements in a JSON-lines file beside the run, so that checkpoints need not hold them.

A checkpoint holds the file's path, its length at that moment, and the hash of that part. Later lines belong to steps
that a resumed run repeats.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, get_args

from lightning_probes.probing.run.files import created, opened_alone, places, write_at
from lightning_probes.results import Result

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Result)}


class Journal:
    """Lines that are appended to a file and can be read again later.

    Only one run appends to a file: it holds a lock from its first line to `release`. If a run finds its file locked, or
    longer than before, it copies its lines to a new file and continues there.

    Args:
        path: The file; None until it is known.
        lines: The lines of an earlier journal.
        are_written: Whether the file holds exactly these lines already.

    Attributes:
        path: The file. Its name has a number if another file had that name.
    """

    def __init__(self, path: Path | None = None, lines: Iterable[str] = (), are_written: bool = False) -> None:
        self.path = self._wanted = path
        self._file: BinaryIO | None = None
        self._is_there = are_written
        self._digest = ""
        self._length = 0
        self._unwritten: list[bytes] = []
        for line in lines:
            self.add(line)
        self._written = self._length if are_written else 0
        if are_written:
            self._unwritten = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # a copy has no open file

    def add(self, line: str) -> None:
        """Add a line, which the next `flush` writes to the file."""
        content = line.encode() + b"\n"
        self._digest = _extended(self._digest, content)
        self._length += len(content)
        self._unwritten.append(content)

    def flush(self) -> None:
        """Write the added lines to the file.

        Raises:
            OSError: If they can't be written. A later `flush` tries again.
        """
        if self.path is None or (self._written and not self._unwritten):
            return
        file = self._opened()
        # This overwrites a line that was written only in part.
        write_at(file, self._written, b"".join(self._unwritten))
        self._written, self._unwritten = self._length, []

    def keep_at(self, path: Path) -> None:
        """Keep the lines in this file, or in a numbered one if it exists.

        If the lines are already in a file in the same folder, they stay there.

        Raises:
            OSError: If the present file can't be read.
        """
        self._wanted = path
        if self.path is None or self.path.parent != path.parent:
            self._begin_anew()
            self.path = path

    def release(self) -> None:
        """Release the lock, so that others can append to the file until the next `flush`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """Write the added lines, and return where to find all present lines.

        Raises:
            OSError: If they can't be written.
        """
        self.flush()
        return {"path": None if self.path is None else str(self.path), "offset": self._length, "sha256": self._digest}

    @staticmethod
    def whole(path: Path) -> tuple[dict[str, Any], list[str]]:
        """The state and the lines of a whole file. An incomplete last line is removed from the file.

        Raises:
            OSError: If the file can't be read or written.
        """
        with path.open("r+b") as file:
            content = file.read()
            content = content[: content.rfind(b"\n") + 1]
            file.truncate(len(content))
        lines = content.splitlines(keepends=True)
        state = {"path": str(path), "offset": len(content), "sha256": functools.reduce(_extended, lines, "")}
        return state, [line.decode() for line in lines]

    def _opened(self) -> BinaryIO:
        assert self.path is not None
        assert self._wanted is not None
        if self._file is not None and not self.path.exists():  # deleted: lines added to it would be lost
            self._begin_anew()
        if self._file is None and self._is_there:
            self._file = opened_alone(self.path, self._written)
            if self._file is None:
                self._begin_anew()
        if self._file is None:
            self.path, self._file = created(self._wanted)
            self._is_there = True
        return self._file

    def _begin_anew(self) -> None:
        """Make the next `flush` write all lines to a new file."""
        if self._written and self.path is not None:
            with self.path.open("rb") if self._file is None else self._file as file:
                file.seek(0)
                self._unwritten.insert(0, file.read(self._written))
        self.release()
        self._written, self._is_there = 0, False

    @staticmethod
    def read(state: Mapping[str, Any], beside: Path | None = None) -> tuple[Path | None, list[str] | None]:
        """The lines that an earlier journal had when it returned this state.

        Args:
            state: The result of its `state_dict`.
            beside: The checkpoint that held this state. It may have moved along with the file.

        Returns:
            The file and the lines; None and None if the file is missing, or if these lines have changed.
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
        >>> from lightning_probes.results import Scalar
        >>> encoded(3, 0, {"fisher/trace": Scalar("fisher/trace", 2.5)}, {"fisher/seconds": 0.5})[:60]
        '{"step": 3, "epoch": 0, "fisher/seconds": 0.5, "results": [{'
    """
    described = [
        {"kind": type(r).__name__, **{f.name: _without_numpy(getattr(r, f.name)) for f in fields(r)}}
        for r in results.values()
    ]
    return json.dumps({"step": step, "epoch": epoch, **extra, "results": described})


def decoded(line: str) -> tuple[int, int, dict[str, Result], dict[str, float]]:
    """The arguments that `encoded` got.

    Example:
        >>> from lightning_probes.results import Scalar
        >>> decoded(encoded(3, 0, {"fisher/trace": Scalar("fisher/trace", 2.5)}, {}))[2]
        {'fisher/trace': Scalar(key='fisher/trace', value=2.5, standard_error=None, detail=False)}
    """
    extra = json.loads(line)
    step, epoch, described = extra.pop("step"), extra.pop("epoch"), extra.pop("results")
    results = [_KINDS[values.pop("kind")](**values) for values in described]
    return step, epoch, {result.key: result for result in results}, extra


def _extended(digest: str, line: bytes) -> str:
    """The hash of several lines and one more, where `digest` is the hash of the several lines."""
    return hashlib.sha256(digest.encode() + line).hexdigest()


def _without_numpy(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
