"""The files that callbacks keep beside a run.

A file is either replaced as a whole, or appended to by a single process. It is found again if it moved along with the
checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

# The operating system releases both kinds of lock when a process dies, even when it is killed.
if sys.platform == "win32":
    import msvcrt

    _BEHIND_THE_END = 1 << 30  # Windows forbids reading a locked range, so lock one that holds no data

    def _lock(file: BinaryIO) -> None:
        file.seek(_BEHIND_THE_END)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def opened_alone(path: Path, size: int) -> BinaryIO | None:
    """Open an existing file for writing, with an exclusive lock; None if it is locked or does not have this size.

    On file systems without locks, such as some network drives, the result is None too. The lock lasts until the file is
    closed. A forked child shares the file and its lock.
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
    """Create a file for this process alone, see `opened_alone`. If `path` exists, the name gets a number.

    Raises:
        OSError: If no file can be created.
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
            with suppress(OSError):  # on a file system without locks, `opened_alone` opens no existing file anyway
                _lock(file)
            return candidate, file


def write_at(file: BinaryIO, place: int, content: bytes) -> None:
    """Write this content at an offset of a file, and cut off all that came after it.

    Raises:
        OSError: If it can't be written. The same call may be repeated later.
    """
    file.seek(place)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    file.truncate()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to. It appears at `path` when the block ends, and never if the block raises."""
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
    """Write a file so that it exists either with its whole content or not at all."""
    with replacing(path) as file:
        file.write(content)


def places(path: str | None, beside: Path | None) -> list[Path]:
    """The paths at which a file named in a checkpoint may lie: its old path, or a new one beside a moved checkpoint."""
    if path is None:
        return []
    *_, folder, name = ("", *PureWindowsPath(path).parts)  # splits at the separators of all systems
    near = [] if beside is None else [beside.parent, beside.parent / folder, beside.parent.parent / folder]
    return [Path(path), *(place / name for place in near)]
