"""The report of a run that goes on, served on this machine alone: it is written anew when the run has something new."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mmrl_core.errors import MMRLError
from mmrl_core.runs.report.page import report_html
from mmrl_core.runs.rollouts import FOLDER

ADDRESS = "127.0.0.1"
FILES = ("config.yaml", "metrics.jsonl", "set_aside.jsonl", "starts.jsonl")


class ReportServer(ThreadingHTTPServer):
    """Answers `/` with the page and `/version` with what it shows; the page asks, and reloads when there is more."""

    daemon_threads = True

    def __init__(self, runs: Sequence[Path], port: int, *, runs_files: bool = False) -> None:
        """
        Args:
            port: 0 for any that is free.
            runs_files: see `write_report`.

        Raises:
            MMRLError: the port is taken, or a directory is no run.
        """
        self._runs, self._runs_files = list(runs), runs_files
        self._lock = threading.Lock()
        self._shown = ("", b"")
        self.page()  # what is no run is refused before anything is served
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise MMRLError(f"cannot serve on {ADDRESS}:{port}: {error}. Name another port with --port.") from error

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    def version(self) -> str:
        """Changes with the files of the runs."""
        told = hashlib.sha256()
        for run in self._runs:
            for path in [*(run / name for name in FILES), *sorted((run / FOLDER).glob("*.jsonl"))]:
                try:
                    stat = path.stat()
                except OSError:  # not there yet, or renamed just now
                    continue
                told.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return told.hexdigest()[:16]

    def page(self) -> bytes:
        """The page of the present version; made once for each."""
        with self._lock:
            version = self.version()
            if version != self._shown[0]:
                html = report_html(self._runs, runs_files=self._runs_files, version=version)
                self._shown = version, html.encode("utf-8", errors="replace")
            return self._shown[1]


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        if self.headers.get("Host") not in (
            f"{ADDRESS}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._send(403, "text/plain", b"asked for under another name")  # a page elsewhere, by its own DNS
        elif self.path == "/":
            try:
                self._send(200, "text/html", self.server.page())
            except MMRLError as error:
                self._send(500, "text/plain", str(error).encode("utf-8", errors="replace"))
        elif self.path == "/version":
            self._send(200, "text/plain", self.server.version().encode())
        else:
            self._send(404, "text/plain", b"not found")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are nothing to tell of."""
