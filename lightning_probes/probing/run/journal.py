"""A probe's measurements in a JSON-lines file beside the run, so that a checkpoint need not hold them.

A checkpoint keeps the file's path, how long it was, and the hash of that much: what was appended later belongs to steps
that a resumed run takes again.
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
    """Lines that are appended to a file, and found again.

    One run alone appends to a file: it holds a lock from its first line to `release`. One that finds its file locked,
    or longer than it left it, goes on in a file of its own.

    Args:
        path: The file; None until it is known.
        lines: What an earlier journal held.
        are_written: Whether the file holds these lines already, and no more.

    Attributes:
        path: The file, numbered if there was one of that name.
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
        return {**vars(self), "_file": None}  # which is no copy's

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
        file = self._opened()
        # A line that was written in part is written over.
        write_at(file, self._written, b"".join(self._unwritten))
        self._written, self._unwritten = self._length, []

    def keep_at(self, path: Path) -> None:
        """Keep the lines in a file of this path, or numbered; in the one they are in, if it is in the same folder.

        Raises:
            OSError: If that one can't be read.
        """
        self._wanted = path
        if self.path is None or self.path.parent != path.parent:
            self._begin_anew()
            self.path = path

    def release(self) -> None:
        """Let others append to the file, until the next `flush`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """Where to find what there is now, which is written first.

        Raises:
            OSError: If it can't be.
        """
        self.flush()
        return {"path": None if self.path is None else str(self.path), "offset": self._length, "sha256": self._digest}

    @staticmethod
    def whole(path: Path) -> tuple[dict[str, Any], list[str]]:
        """The state and the lines of all that a file holds; a last line that was cut off is taken away.

        Raises:
            OSError: If it can't be read or written.
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
        if self._file is not None and not self.path.exists():  # deleted, so that nobody would find what is added
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
        """Have the next `flush` write all lines to a new file."""
        if self._written and self.path is not None:
            with self.path.open("rb") if self._file is None else self._file as file:
                file.seek(0)
                self._unwritten.insert(0, file.read(self._written))
        self.release()
        self._written, self._is_there = 0, False

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
    """What `encoded` was given.

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
    """Hash of some lines, whose hash is `digest`, and one more."""
    return hashlib.sha256(digest.encode() + line).hexdigest()


def _without_numpy(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
