"""The folder of a study: what the study is, and one file for each part of it that is finished."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning_probes.probing.run.files import write_atomically
from lightning_probes.probing.user_code import brief

_STUDY = "study.json"


class Folder:
    """Keeps what is finished, so that a study that was killed continues where it stopped.

    Args:
        path: The folder; created if it does not exist.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, settings: Mapping[str, Any], files: Collection[str], force: bool = False) -> str:
        """Begin a study, or take up the one that is in the folder.

        Args:
            settings: All that makes two studies different, as values that JSON can hold.
            files: The names of all files that the study will have.
            force: Replace another study that is in the folder.

        Returns:
            A name for the study that no other has.

        Raises:
            FileExistsError: If the folder has another study and `force` is False, or files that belong to no study.
        """
        settings = json.loads(json.dumps(settings))
        known = self.read(_STUDY)
        if known is None:
            self._check_empty()
        elif known["settings"] == settings:
            return str(known["name"])
        else:
            self._replace(known, settings, force)
        name = f"{self.path.name}-{secrets.token_hex(4)}"
        self._write(_STUDY, {"name": name, "settings": settings, "files": sorted(files)})
        return name

    def read(self, file: str) -> Any:
        """What a file of JSON holds; None if the file does not exist."""
        try:
            return json.loads((self.path / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def finish(self, part: str, facts: Mapping[str, Any]) -> None:
        """Keep what is known of a part that is finished."""
        self._write(f"{part}.json", dict(facts))

    def finished(self, part: str) -> Any:
        """What `finish` has kept of a part; None if it is not finished."""
        return self.read(f"{part}.json")

    def tidy(self) -> None:
        """Remove what processes that were killed had begun to save, now that nothing is being saved."""
        for file in self.read(_STUDY)["files"]:
            for begun in (*self.path.glob(f"{Path(file).stem}.part*"), *self.path.glob(f".{file}.*")):
                begun.unlink(missing_ok=True)

    def _write(self, file: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / file, json.dumps(content, indent=1).encode())

    def _check_empty(self) -> None:
        if self.path.exists() and not all(each.name.startswith(".") for each in self.path.iterdir()):
            raise FileExistsError(f"directory={str(self.path)!r} has files but no study: pass a new directory=")

    def _replace(self, known: Mapping[str, Any], settings: Mapping[str, Any], force: bool) -> None:
        if not force:
            before = known["settings"]
            differing = ", ".join(
                f"{name} is {brief(repr(before.get(name)), 60)} there and {brief(repr(settings.get(name)), 60)} here"
                for name in {**before, **settings}
                if before.get(name) != settings.get(name)
            )
            raise FileExistsError(
                f"directory={str(self.path)!r} holds another study ({differing}): pass another directory=, or "
                "force=True to replace it"
            )
        for file in known["files"]:
            (self.path / file).unlink(missing_ok=True)
