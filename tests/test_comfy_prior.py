"""The checks in tests/comfy, each as a test: they run inside a real ComfyUI, with its own Python."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import comfyui
import pytest

COMFYUI, PYTHON = comfyui.find()
FOLDER = Path(__file__).parent / "comfy"
CHECKS = [
    node.name
    for file in sorted(FOLDER.glob("checks_*.py"))
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def errors(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """What the checks that are asked for found wrong, by name; one process runs them all."""
    wanted = [item.callspec.params["check"] for item in request.session.items if item.module is request.module]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [PYTHON, FOLDER / "run.py", COMFYUI, *wanted], capture_output=True, text=True, env=environment, cwd=COMFYUI
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    missing = dict.fromkeys(wanted, f"ComfyUI ended before this check was done:\n{done.stderr[-4000:]}")
    return missing | {result["check"]: result["error"] for result in found}


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(check: str, errors: dict[str, str | None]):
    if errors[check] is not None:
        pytest.fail(errors[check], pytrace=False)
