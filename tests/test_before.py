"""Files that an earlier version wrote are still taken (`tests/before`; those of ComfyUI are in the nodes' tests)."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from test_cli import dreamflow

from dreamflow_core.scenes.nerf import load_field
from dreamflow_core.state import load_state

BEFORE = Path(__file__).parent / "before"
SMALL = [
    *("--levels", 4, "--iterations", 1, "--views", 1, "--hidden", 8, "--samples", 16, "--coarse-size", 16),
    *("--grid-levels", 2, "--grid-entries-log2", 6, "--grid-features", 2, "--occupancy", 8, "--phi-rank", 1),
]


def test_a_run_that_was_stopped_before_goes_on(tmp_path: Path):
    shutil.copy(BEFORE / "nerf-state.safetensors", tmp_path)
    run = ["nerf", "a red sphere", *SMALL, "--out", tmp_path, "--resume"]
    other = dreamflow(*run, "--seed", 4)
    assert other.returncode == 2 and "of another run: it differs in seed" in other.stderr, other.stderr
    done = dreamflow(*run, "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert load_state(tmp_path / "nerf-state.safetensors")["loop"]["step"] == 4
    made, then = (load_field(folder / "nerf.safetensors").field.state_dict() for folder in (tmp_path, BEFORE))
    for name, value in then.items():
        # Adam's first steps go by signs: of features whose gradient is all but zero, another processor has others.
        apart = (made[name] - value).abs() > 1e-4
        assert apart.float().mean() < 0.02, name


def test_a_field_that_was_saved_before_is_rendered(tmp_path: Path):
    done = dreamflow("render", BEFORE / "nerf.safetensors", "--views", 2, "--size", 32, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    field = load_field(BEFORE / "nerf.safetensors")
    density = field.density(torch.zeros(1, 3))
    assert 5 < float(density) < 20, "its ball is gone"
