"""What libraries print: what does not concern the user is kept from them, and nothing else."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreamflow_core.quiet import bars_on_terminals, without_driver_warning, without_messages
from dreamflow_core.render import backends

ROOT = Path(__file__).parent.parent
NO_DRIVER = b"Warp CUDA warning: Could not find or load the NVIDIA CUDA driver. GPU execution will not be available.\n"
FEW = ["--levels", "2", "--iterations", "1", "--samples", "24", "--coarse-size", "16"]


def said(command: str, *arguments: object) -> list[str]:
    """What a command of ours writes to standard error."""
    command_line = [sys.executable, "-m", "dreamflow_core.cli", command, *map(str, arguments)]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_a_field_is_optimised_without_a_word_of_warps(tmp_path: Path):
    (line,) = said("nerf", "a red sphere", "--out", tmp_path, *FEW)
    assert line.startswith("nerf: step 2 of 2")


def test_models_are_loaded_without_a_word_of_diffusers(tmp_path: Path):
    from test_diffusers_prior import make_lora, make_pipeline

    make_pipeline("sd1").save_pretrained(tmp_path / "model")
    make_lora(tmp_path / "lora.safetensors", "kohya")
    options = ["--out", tmp_path, "--count", 1, "--levels", 3, "--model", tmp_path / "model"]
    (line,) = said("image", "cat", *options, "--lora", tmp_path / "lora.safetensors")
    assert line.startswith("image: step 3 of 3")


@pytest.mark.parametrize("gpu", [False, True])
def test_only_the_missing_driver_is_not_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, gpu: bool):
    """And where torch has a GPU that Warp misses, it is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(RuntimeError), without_driver_warning():
        print("before", file=sys.stderr)
        os.write(2, NO_DRIVER + b"Warp CUDA error 2\n")
        raise RuntimeError
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == f"before\n{NO_DRIVER.decode() if gpu else ''}Warp CUDA error 2\nafter\n"


def test_warp_is_as_loud_as_before(capfd: pytest.CaptureFixture):
    wp = pytest.importorskip("warp")
    level = wp.config.log_level
    assert level < wp.LOG_WARNING
    backends._warp_works.cache_clear()
    assert backends.warp_works(torch.device("cpu"))
    assert wp.config.log_level == level
    assert capfd.readouterr() == ("", "")


def test_a_logger_loses_one_message_for_a_while(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("library.part")
    with without_messages({"library.part": "no matter"}):
        logger.warning("this is %s matter", "no")
        logger.warning("this is")
    logger.warning("no matter")
    assert caplog.messages == ["this is", "no matter"]


def test_bars_come_back(monkeypatch: pytest.MonkeyPatch):
    logs = pytest.importorskip("diffusers").utils.logging
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert logs.is_progress_bar_enabled()
    with bars_on_terminals("diffusers", "transformers"):
        assert not logs.is_progress_bar_enabled()
    assert logs.is_progress_bar_enabled()
