"""Chromium without a window, driven by its own debugging protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 300
"""Seconds within which the browser has something to say, unless it hangs."""


class Browser:
    """One page.

    Args:
        profile: folder for the browser's own files.
        size: (width, height) of the page in pixels.
        webgl: with WebGL, by the CPU.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1600, 900), webgl: bool = False):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip("no Chromium was found: install it (on Debian: apt-get install chromium)")
        graphics = "--use-angle=swiftshader --enable-unsafe-swiftshader" if webgl else "--disable-gpu"
        options = f"--headless=new --no-sandbox {graphics} --remote-debugging-port=0 --user-data-dir={profile}"
        size_option = f"--window-size={size[0]},{size[1]}"
        self.process = subprocess.Popen(
            [program, *options.split(), size_option, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = self._port(profile / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as pages:
            page = next(page for page in json.load(pages) if page["type"] == "page")
        self.open_things = ExitStack()
        self.socket = self.open_things.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None))
        self.asked, self.complaints = 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def _port(self, file: Path) -> int:
        end = time.monotonic() + 60
        while not (file.exists() and file.read_text()):
            if time.monotonic() > end:
                raise RuntimeError("Chromium did not start")
            time.sleep(0.1)
        return int(file.read_text().split()[0])

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; errors that the page reports meanwhile become `complaints`."""
        self.asked += 1
        self.socket.send(json.dumps({"id": self.asked, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            if message.get("id") == self.asked:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and message["params"]["type"] == "error":
            arguments = message["params"]["args"]
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in arguments))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 120) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise RuntimeError(f"the page never came to fulfil: {condition}")
            time.sleep(0.25)

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)

    def picture(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self.open_things.close()
        self.process.kill()
        self.process.wait()
