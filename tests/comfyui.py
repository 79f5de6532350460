"""A real ComfyUI for the node tests: where it is, and a server of it with this pack as its only one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT = 300
"""Seconds that a server may take to answer; 20 are usual."""


def find() -> tuple[Path, Path]:
    """ComfyUI's folder and the Python that runs it; skips the test if there is none."""
    folders = [
        Path(os.environ.get("COMFYUI_PATH", "")),
        ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else Path(),
        Path.home() / "comfy" / "ComfyUI",
    ]
    folder = next((f for f in folders if (f / "comfyui_version.py").is_file()), None)
    if folder is None:
        pytest.skip("ComfyUI was not found: set COMFYUI_PATH to its folder")
    pythons = [Path(os.environ.get("COMFYUI_PYTHON", "")), *(folder.glob("*venv/bin/python"))]
    python = next((p for p in pythons if p.is_file()), None)
    if python is None:
        pytest.skip(f"the Python of {folder} was not found: set COMFYUI_PYTHON to it")
    return folder, python


SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False}
"""The frontend's settings: no welcome, and no workflow of an earlier session."""


class Server:
    """A ComfyUI server on the CPU with a base folder of its own.

    Args:
        base: folder for its models, inputs, outputs and settings; kept between starts.
        pack: folder that becomes its only custom node.
    """

    def __init__(self, base: Path, pack: Path = ROOT):
        self.folder, self.python = find()
        self.base, self.log = base, base / "server.log"
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / "dreamflow"
        if not link.exists():
            link.symlink_to(pack, target_is_directory=True)
        self.address = ""

    def set_frontend(self, **settings: object) -> None:
        """Settings of ComfyUI's frontend, beside `SETTINGS`."""
        file = self.base / "user" / "default" / "comfy.settings.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(SETTINGS | settings))

    def start(self) -> Server:
        """Start, and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        options = f"--cpu --port {port} --base-directory {self.base} --database-url sqlite:///{self.base}/comfy.db"
        switches = "--disable-auto-launch --disable-api-nodes --dont-print-server"
        self.process = subprocess.Popen(
            [self.python, "main.py", *options.split(), *switches.split()],
            cwd=self.folder,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        end = time.monotonic() + START_LIMIT
        while not self._answers(port):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.25)
        return self

    def _answers(self, port: int) -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", port)) == 0

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.process.kill()
        self.process.wait()
