"""A headless Chromium, driven over its debugging pipe: what a visitor sees, what a page asks for, how soon it paints.

The protocol is Chromium's DevTools protocol as JSON messages, each ended by a zero byte, over two pipes; no port is opened.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio", "--hide-scrollbars",
)  # fmt: skip
LAUNCH = """
import os, sys
from fcntl import F_DUPFD, fcntl
for fd, at in zip([fcntl(int(fd), F_DUPFD, 10) for fd in sys.argv[1:3]], (3, 4)):
    os.dup2(fd, at)
os.execv(sys.argv[3], sys.argv[3:])
"""  # the protocol's descriptors are 3 and 4, which in the process that starts it may be somebody else's
WAIT_S = 60.0
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def program() -> str | None:
    """Where Chromium is on this machine, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Visit:
    """A page in a tab of its own. `problems`: what its console complained of; `asked`: every address that it asked for."""

    browser: Browser
    session: str
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def run(self, script: str) -> Any:
        """What the expression comes to in the page; promises are waited for."""
        told = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self.browser.call("Runtime.evaluate", told, self.session)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def first_paint_ms(self) -> float:
        """From the navigation to the first content on the screen."""
        deadline = time.monotonic() + WAIT_S
        while (found := self.run(PAINT)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the page painted nothing")
            time.sleep(0.01)
        return float(found)

    def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        found = self.browser.call("Page.captureScreenshot", {"captureBeyondViewport": True}, self.session)
        path.write_bytes(base64.b64decode(found["data"]))


class Browser:
    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process = process
        self._to, self._from = to, back
        self._left = b""
        self._number = 0
        self._visits: dict[str, Visit] = {}
        self._loaded: set[str] = set()

    def visit(
        self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> Visit:
        """Open it, and wait until it has loaded."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        found = self._visits[session] = Visit(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", {}, session)
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", screen, session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]}, session)
        self.call("Emulation.setScriptExecutionDisabled", {"value": not scripts}, session)
        self._loaded.discard(session)
        went = self.call("Page.navigate", {"url": url}, session)
        if "errorText" in went:
            raise RuntimeError(f"{url}: {went['errorText']}")
        deadline = time.monotonic() + WAIT_S
        while session not in self._loaded:
            self._take(deadline)
        return found

    def call(self, method: str, told: dict[str, Any], session: str = "") -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": told} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + WAIT_S
        while (answer := self._take(deadline)).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def close(self) -> None:
        os.close(self._to)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._from)

    def _take(self, deadline: float) -> dict[str, Any]:
        """The next message; those that tell of a page are noted as well."""
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            more = os.read(self._from, 1 << 16)
            if not more:
                raise RuntimeError("the browser ended")
            self._left += more
        text, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}), message.get("sessionId", ""))
        return message

    def _note(self, method: str, told: dict[str, Any], session: str) -> None:
        visit = self._visits.get(session)
        if visit is None:
            return
        if method == "Page.loadEventFired":
            self._loaded.add(session)
        elif method == "Network.requestWillBeSent":
            visit.asked.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            visit.problems.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            visit.problems.append(str([each.get("value", each.get("description")) for each in told["args"]]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            visit.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")


@contextmanager
def browser(folder: Path, flags: Sequence[str] = ()) -> Iterator[Browser]:
    """`folder`: for its profile. Raises FileNotFoundError where there is no Chromium."""
    found = program()
    if found is None:
        raise FileNotFoundError("no Chromium here: apt-get install chromium")
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    call = [
        sys.executable,
        "-c",
        LAUNCH,
        str(theirs_in),
        str(theirs_out),
        found,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        *flags,
    ]
    process = subprocess.Popen(
        call, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    os.close(theirs_in)
    os.close(theirs_out)
    opened = Browser(process, to, back)
    try:
        yield opened
    finally:
        opened.close()
