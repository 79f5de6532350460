"""The pack's metadata and help, without ComfyUI."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from comfyui import ROOT, missing


def test_the_oldest_comfyui_is_the_same_everywhere():
    (wanted,) = re.findall(r'requires-comfyui = ">=(.*)"', (ROOT / "pyproject.toml").read_text())
    (checked,) = re.findall(r'MINIMUM_COMFYUI = "(.*)"', (ROOT / "__init__.py").read_text())
    assert wanted == checked


def test_every_workflow_has_its_api_format_and_picture():
    folder = ROOT / "workflows"
    names = {path.stem for path in folder.glob("*.json")}
    assert names == {path.stem for path in (folder / "api").glob("*.json")} == {p.stem for p in folder.glob("*.jpg")}
    assert len(names) == 4


def test_no_other_folder_hides_the_workflows():
    # ComfyUI lists the templates of all of these folders, but serves those of the first that is there.
    before = ("example_workflows", "example", "examples", "workflow")
    assert not [name for name in before if (ROOT / name).exists()]


def test_what_comfyui_lacks_is_found(tmp_path: Path):
    """By the names of distributions, which are not those of imports, however they are written."""
    requirements = tmp_path / "requirements.txt"
    others = "Pillow >= 1\nscikit_image\nFast.Simplification\n"
    requirements.write_text(f"# a comment\npytest\nno-such-distribution\n\ntorch>=999  # why\n{others}")
    python = Path(sys.executable)
    assert missing(python, requirements) == ("no-such-distribution", "torch>=999")
    assert missing(python, ROOT / "requirements.txt") == ()


def test_comfyui_is_told_to_install_what_pip_is():
    listed = (ROOT / "requirements.txt").read_text().split("\n")
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert [line for line in listed if line and line[0] != "#"] == re.findall('"(.*)"', dependencies[1])
