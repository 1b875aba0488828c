"""The files that callbacks keep beside a run: written whole or by one process, and found again when they are moved."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

# The system lets go of both kinds of lock when a process dies, however it dies.
if sys.platform == "win32":
    import msvcrt

    _BEHIND_THE_END = 1 << 30  # what is locked there nobody can read

    def _lock(file: BinaryIO) -> None:
        file.seek(_BEHIND_THE_END)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def opened_alone(path: Path, size: int) -> BinaryIO | None:
    """An existing file to write to, if it has this size and nobody else has opened it in this way.

    On file systems without locks, as on some network drives, it is not opened either. Until the file is closed nobody
    else will open it so; a process that forks shares it with its children.
    """
    try:
        file: BinaryIO = path.open("r+b", buffering=0)
    except OSError:
        return None
    try:
        _lock(file)
        if os.fstat(file.fileno()).st_size == size:
            return file
    except OSError:
        pass
    file.close()
    return None


def created(path: Path) -> tuple[Path, BinaryIO]:
    """A new file for this process alone, as `opened_alone`: of this path, or numbered if there is a file there.

    Raises:
        OSError: If none can be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, candidate = 0, path
    while True:
        try:
            file: BinaryIO = candidate.open("x+b", buffering=0)
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        else:
            with suppress(OSError):  # without locks nobody opens a file that is there
                _lock(file)
            return candidate, file


def write_at(file: BinaryIO, place: int, content: bytes) -> None:
    """Have a file end in this content from a place on.

    Raises:
        OSError: If that can't be; it may be tried again.
    """
    file.seek(place)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    file.truncate()


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


def places(path: str | None, beside: Path | None) -> list[Path]:
    """Where a file that a checkpoint names may be: where it was, or where it moved to with the checkpoint."""
    if path is None:
        return []
    *_, folder, name = ("", *PureWindowsPath(path).parts)  # which knows the separators of every system
    near = [] if beside is None else [beside.parent, beside.parent / folder, beside.parent.parent / folder]
    return [Path(path), *(place / name for place in near)]
