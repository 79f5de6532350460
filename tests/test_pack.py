"""The pack's metadata and help, without ComfyUI."""

from __future__ import annotations

import re

from comfyui import ROOT


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
