"""A real server, as its clients and its host see it."""

from __future__ import annotations

import http.client
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from serving import board
from serving.page import Page


@dataclass
class Running:
    """`coppice serve`, its own process, on loopback."""

    process: subprocess.Popen[bytes]
    port: int
    traffic: Path
    log: Path

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: (status, headers in lower case, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            sent = {"content-type": "application/json"} | (headers or {}) if body is not None else headers or {}
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def page(self) -> Page:
        (path,) = (self.traffic / "pages").glob("*.page")
        return Page.open(path, readonly=True)

    def workers(self) -> list[int]:
        """Those that live, in the order of their slots."""
        present = self._children()
        return [slot.pid for slot in self.page().slots() if slot.pid in present]

    def sync(self) -> int:
        """The sync process; 0 while there is none."""
        pid = int(self.page().board.cells[board.PID])
        return pid if pid in self._children() else 0

    def _children(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8")
        return {int(pid) for pid in children.split()}

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)
