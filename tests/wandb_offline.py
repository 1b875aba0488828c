"""Reads what an offline W&B run wrote, without a server.

`run-<id>.wandb` is a log in LevelDB's framing: after a seven-byte header, blocks of 32 KiB that hold fragments, each
with a checksum, a length and a place in its record (whole, first, middle, last). A record is a `Record` message.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FILE_HEADER = struct.Struct("<4sHB")
FRAGMENT_HEADER = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """An offline run: history rows, final summary and config, alerts, metric definitions by exact name and by glob."""

    directory: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    alerts: list[dict[str, str]] = field(default_factory=list)
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    globs: list[str] = field(default_factory=list)

    def rows(self, key: str) -> list[dict[str, Any]]:
        """History rows that hold a key, without W&B's own columns."""
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in self.history if key in row]

    def file(self, value: dict[str, Any]) -> Any:
        """The JSON file (a table, a Plotly figure) that a logged value refers to."""
        return json.loads((self.directory / "files" / value["path"]).read_text())

    def table(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a logged table."""
        content = self.file(value)
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def read(directory: Path, wait_seconds: float = 30.0) -> OfflineRun:
    """Read the run in a directory such as `wandb/offline-run-…`.

    `wandb.finish()` may return before the log is on disk, so this waits for the record that ends it. Of a run that is
    still open, or was killed, `wait_seconds=0` reads what is there.
    """
    (log,) = directory.glob("run-*.wandb")
    deadline = time.monotonic() + wait_seconds
    while True:
        kinds, run = _read_once(log)
        if "exit" in kinds or wait_seconds == 0:
            return run
        if time.monotonic() > deadline:
            raise TimeoutError(f"{log} has no end after {wait_seconds} s; was the run finished?")
        time.sleep(0.02)


def read_all(root: Path, wait_seconds: float = 30.0) -> list[OfflineRun]:
    """Read every run below a directory, in the order of their start."""
    logs = sorted(root.rglob("run-*.wandb"), key=lambda log: log.parent.name)
    return [read(log.parent, wait_seconds) for log in logs]


def payloads(content: bytes) -> Iterator[bytes]:
    """The messages of a log, fragments put together; a log cut short simply ends."""
    if len(content) < FILE_HEADER.size:
        return
    magic = FILE_HEADER.unpack_from(content)
    if magic[:2] != (b":W&B", 0xBEE1):
        raise ValueError(f"not a W&B log: it starts with {content[:7]!r}")
    place, parts = FILE_HEADER.size, b""
    while True:
        rest_of_block = BLOCK - place % BLOCK
        if rest_of_block < FRAGMENT_HEADER.size:
            place += rest_of_block
        start = place + FRAGMENT_HEADER.size
        if start > len(content):
            return
        checksum, length, kind = FRAGMENT_HEADER.unpack_from(content, place)
        fragment = content[start : start + length]
        if kind == 0 or len(fragment) < length:
            return
        if zlib.crc32(bytes([kind]) + fragment) != checksum:
            raise ValueError(f"wrong checksum at byte {place}")
        place = start + length
        parts = fragment if kind in (WHOLE, FIRST) else parts + fragment
        if kind in (WHOLE, LAST):
            yield parts


def _read_once(log: Path) -> tuple[set[str], OfflineRun]:
    from wandb.proto.wandb_internal_pb2 import Record

    run, kinds = OfflineRun(log.parent), set()
    for payload in payloads(log.read_bytes()):
        record = Record()
        record.ParseFromString(payload)
        _take(run, record)
        kinds.add(record.WhichOneof("record_type"))
    return kinds, run


def _take(run: OfflineRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "history":
        run.history.append({})
        _update(run.history[-1], record.history.item)
    elif kind == "summary":
        _update(run.summary, record.summary.update)
        for item in record.summary.remove:
            run.summary.pop(item.key, None)
    elif kind == "config":
        _update(run.config, record.config.update)
    elif kind == "run":
        # A later `run` record sends an empty `_wandb` again, which takes nothing back.
        sent: dict[str, Any] = {}
        _update(sent, record.run.config.update)
        run.config |= sent | {"_wandb": run.config.get("_wandb", {}) | sent.get("_wandb", {})}
        _update(run.summary, record.run.summary.update)
    elif kind == "alert":
        alert = record.alert
        run.alerts.append({name: getattr(alert, name) for name in ("title", "text", "level", "wait_duration")})
    elif kind == "metric":
        metric = record.metric
        if metric.glob_name:
            run.globs.append(metric.glob_name)
        else:
            run.definitions[metric.name] = {"step_metric": metric.step_metric, "hidden": metric.options.hidden}


def _update(target: dict[str, Any], items: Any) -> None:
    """Set items that are keyed by a name, or by a path of names."""
    for item in items:
        *path, name = item.nested_key or [item.key]
        place = target
        for step in path:
            place = place.setdefault(step, {})
        place[name] = json.loads(item.value_json)
