"""A headless Chromium, spoken to in its DevTools protocol over a pair of pipes: no package is needed."""

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

PROGRAM = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
FLAGS += ("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe")
# The browser reads commands from descriptor 3 and answers on 4. Set in a process between, since a fork of this one,
# whose threads are many, would be warned of.
START = """import os, sys
read, write = (os.dup(os.dup(os.dup(os.dup(int(fd))))) for fd in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execvp(sys.argv[3], sys.argv[3:])"""


class Page:
    """What a browser makes of a file: `events` are all that it said meanwhile."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers, self._rest, self._count = commands, answers, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params} | self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == self._count)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def open(self, path: Path) -> None:
        """Opens a file, and waits until all of it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """A PNG file of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _until(self, wanted, seconds: float = 120) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            message, zero, rest = self._rest.partition(b"\0")
            if zero:
                self._rest, found = rest, json.loads(message)
                if "method" in found:
                    self.events.append(found)
                if wanted(found):
                    return found
            elif select.select([self._answers], [], [], max(0, end - time.monotonic()))[0]:
                more = os.read(self._answers, 1 << 20)
                assert more, "the browser has ended"
                self._rest += more
            else:
                raise TimeoutError("the browser does not answer")


@contextmanager
def browser() -> Iterator[Page]:
    read, commands = os.pipe()
    answers, write = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="jaxgen-browser-", ignore_cleanup_errors=True) as home:
            command = [PROGRAM, *FLAGS, f"--user-data-dir={home}", "about:blank"]
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", START, str(read), str(write), *command],
                pass_fds=(read, write),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"HOME": home},
            )
            os.close(read)
            os.close(write)
            try:
                yield Page(commands, answers)
            finally:
                process.terminate()
                process.wait(30)
    finally:
        os.close(commands)
        os.close(answers)
