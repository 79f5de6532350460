"""A real ComfyUI for the node tests: where it is, and a server of it with this pack as its only one."""

from __future__ import annotations

import functools
import json
import os
import shlex
import socket
import subprocess
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT = 300
"""Seconds that a server may take to answer; 20 are usual."""


_INSTALLED = """
import json, sys
from importlib.metadata import distributions
json.dump({d.name: d.version for d in distributions()}, sys.stdout)
"""


@functools.cache
def missing(python: Path, requirements: Path) -> tuple[str, ...]:
    """Lines of a requirements file that a Python's packages do not meet."""
    done = subprocess.run([python, "-c", _INSTALLED], stdout=subprocess.PIPE, check=True)
    installed = {canonicalize_name(name): version for name, version in json.loads(done.stdout).items()}
    lines = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())

    def met(wanted: Requirement) -> bool:
        version = installed.get(canonicalize_name(wanted.name))
        return version is not None and wanted.specifier.contains(version, prereleases=True)

    return tuple(line for line in lines if line and not met(Requirement(line)))


def find() -> tuple[Path, Path]:
    """ComfyUI's folder and the Python that runs it; skips if there is none, or it lacks packages.

    A module of tests calls this where it is collected, so that the reason is given once and not for each of them.
    They need there what ComfyUI and this pack require, and nothing else.
    """
    skip = functools.partial(pytest.skip, allow_module_level=True)
    folders = [
        Path(os.environ.get("COMFYUI_PATH", "")),
        ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else Path(),
        Path.home() / "comfy" / "ComfyUI",
    ]
    folder = next((f for f in folders if (f / "comfyui_version.py").is_file()), None)
    if folder is None:
        skip("ComfyUI was not found: set COMFYUI_PATH to its folder")
    pythons = [Path(os.environ.get("COMFYUI_PYTHON", "")), *(folder.glob("*venv/bin/python"))]
    python = next((p for p in pythons if p.is_file()), None)
    if python is None:
        skip(f"the Python of {folder} was not found: set COMFYUI_PYTHON to it")
    if lacking := missing(python, ROOT / "requirements.txt"):
        install = shlex.join([str(python), "-m", "pip", "install", *lacking])
        skip(f"ComfyUI lacks what this pack requires: {install}")
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
