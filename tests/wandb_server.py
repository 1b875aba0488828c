"""A small stand-in for the W&B server, on 127.0.0.1 and a free port, for tests of online runs and of sweeps.

    with serving(folder) as server:
        ...                       # any run, `wandb sweep`, agent of this process and of its children goes there
        server.runs[name].history

Every path starts with a nonce, so that a run never lands on a server that somebody else has started.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.wandb_backend import Backend


@contextmanager
def serving(folder: Path) -> Iterator[Backend]:
    """Start a server, and send every run there until the end.

    Args:
        folder: For what W&B keeps on disk.
    """
    import wandb

    backend, nonce = Backend(), uuid.uuid4().hex
    handler = type("Handler", (_Handler,), {"backend": backend, "nonce": nonce})
    server = _Server(("127.0.0.1", 0), handler)
    backend.url = f"http://127.0.0.1:{server.server_address[1]}/{nonce}"
    thread = threading.Thread(target=server.serve_forever, name="stand-in W&B server", daemon=True)
    thread.start()
    wandb.teardown()  # settings are read once
    before = dict(os.environ)
    os.environ.update(_environment(backend.url, folder))
    try:
        yield backend
    finally:
        wandb.teardown()
        for key in os.environ.keys() - before.keys():  # agents, too, leave variables behind
            if key.startswith("WANDB_"):
                del os.environ[key]
        os.environ.update(before)
        server.shutdown()
        server.server_close()
        thread.join()


def _environment(url: str, folder: Path) -> dict[str, str]:
    own = {name: str(folder / name) for name in ("home", "cache", "config", "data", "runs")}
    for path in own.values():
        Path(path).mkdir(parents=True, exist_ok=True)
    return {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_CACHE_DIR": own["cache"],
        "WANDB_CONFIG_DIR": own["config"],
        "WANDB_DATA_DIR": own["data"],
        "WANDB_DIR": own["runs"],
        "HOME": own["home"],
        "NETRC": str(folder / "netrc"),
        "NO_PROXY": "127.0.0.1",
        # Rows arrive while the run goes on: every second, the shortest there is, rather than every fifteen.
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB_X_SAVE_REQUIREMENTS": "false",
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing: W&B resets connections that it no longer needs."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: Backend
    nonce: str

    def do_PUT(self) -> None:
        content, path = self._content(), self._path()
        if path is None or not path.startswith("/storage/"):
            return self._send({"error": "not found"}, 404)
        with self.backend.lock:
            self.backend.upload(path.removeprefix("/storage/"), content)
        return self._send({})

    def do_POST(self) -> None:
        content, path = self._content(), self._path() or ""
        stream = re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", path)
        with self.backend.lock:
            if path == "/graphql":
                return self._send(self._graphql(json.loads(content)))
            if stream:
                return self._send(self.backend.stream(stream[2], stream[1], json.loads(content or b"{}")))
        return self._send({"error": "not found"}, 404)

    def do_GET(self) -> None:
        path = self._path() or ""
        with self.backend.lock:
            stored = path.startswith("/storage/artifact/")
            content = self.backend.download(path.removeprefix("/storage/")) if stored else None
        if content is None:
            return self._send({"error": "not found"}, 404)
        return self._write(content, 200, "application/octet-stream")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        named = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
        operation = named[1] if named else "anonymous"
        try:
            data = self.backend.answer(operation, request.get("variables") or {})
        except Exception as error:  # seen by the client as a server's error, and by the test in `failures`
            self.backend.failures.append(f"{operation}: {error!r}")
            data = None
        if data is None:
            return {"data": None, "errors": [{"message": f"can't answer {operation}"}]}
        return {"data": data}

    def _path(self) -> str | None:
        start = f"/{self.nonce}/"
        return "/" + unquote(self.path.removeprefix(start)) if self.path.startswith(start) else None

    def _content(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            content = b"".join(parts)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _send(self, answer: dict[str, Any], code: int = 200) -> None:
        self._write(json.dumps(answer).encode(), code, "application/json")

    def _write(self, content: bytes, code: int, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
