"""The command as users run it: a process, its files, its exit status and its one line of complaint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
QUICK = ["--count", "1", "--levels", "3"]


def dreamflow(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dreamflow_core.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_text_to_image(tmp_path: Path):
    out = tmp_path / "new" / "folder"
    done = dreamflow("image", "a red cube", "--out", out, "--count", 2, "--levels", 3)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["image-0.png", "image-1.png", "run.json", "state.safetensors"]
    assert pixels(out / "image-0.png").shape == (64, 64, 3)
    run = json.loads((out / "run.json").read_text())
    assert run["model"]["positive"] == "a red cube" and run["settings"]["schedule"]["levels"] == 3
    assert set(run["seconds"]) == {"render", "prior", "phi", "optimiser"}


def test_diffusers_model_with_a_lora(tmp_path: Path):
    """A local folder as --model, half precision, a LoRA file, image to image, another size."""
    from test_diffusers_prior import make_lora, make_pipeline

    make_pipeline("sd1").save_pretrained(tmp_path / "model")
    make_lora(tmp_path / "lora.safetensors", "peft")
    Image.new("RGB", (96, 64), (200, 30, 30)).save(tmp_path / "start.png")
    arguments = ["--model", tmp_path / "model", "--lora", f"{tmp_path / 'lora.safetensors'}:0.5", "--dtype", "bf16"]
    arguments += ["--init", tmp_path / "start.png", "--start", 0.5, "--out", tmp_path / "out", *QUICK]
    done = dreamflow("image", "cat", *arguments)
    assert done.returncode == 0, done.stderr
    assert pixels(tmp_path / "out" / "image-0.png").shape == (64, 96, 3)


def test_image_to_image_keeps_the_picture_at_low_noise(tmp_path: Path):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 16:48] = (217, 20, 20)
    Image.fromarray(picture).save(tmp_path / "square.png")
    arguments = ["--init", tmp_path / "square.png", "--start", 0.2, "--out", tmp_path / "out", *QUICK]
    done = dreamflow("image", "a red cube, black background", *arguments)
    assert done.returncode == 0, done.stderr
    difference = np.abs(pixels(tmp_path / "out" / "image-0.png").astype(float) - picture).mean()
    assert 0 < difference < 12


def test_killed_at_any_moment_and_resumed(tmp_path: Path):
    """SIGKILL leaves whole files only, and --resume ends with the picture of an uninterrupted run."""
    arguments = ["image", "a green star", "--count", "2", "--levels", "40", "--seed", "5"]
    assert dreamflow(*arguments, "--out", tmp_path / "whole").returncode == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "dreamflow_core.cli", *arguments, "--out", str(out), "--save-every", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert not (out / "image-0.png").exists()
    done = dreamflow(*arguments, "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    for name in ("image-0.png", "image-1.png"):
        assert np.array_equal(pixels(out / name), pixels(tmp_path / "whole" / name))


def test_interrupt_stops_and_says_how_to_continue(tmp_path: Path):
    arguments = ["image", "a blue torus", "--count", "1", "--levels", "2000", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "dreamflow_core.cli", *arguments, "--save-every", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after" in complaint and "--resume" in complaint
    assert "Traceback" not in complaint


def bad_inputs(folder: Path) -> dict[str, tuple[list, str]]:
    (folder / "broken.safetensors").write_bytes(b"nonsense")
    (folder / "text.png").write_text("not a picture")
    (folder / "file").write_text("")
    Image.new("RGB", (48, 48)).save(folder / "small.png")
    return {
        "unknown word": (["a red dragon"], "'dragon'. It knows shape: sphere"),
        "two shapes": (["a cube cone"], "'cone' is one shape too many"),
        "missing model": (["a cube", "--model", "nowhere"], "no model 'nowhere'"),
        "broken checkpoint": (["a cube", "--model", folder / "broken.safetensors"], "broken.safetensors"),
        "foreign folder": (["a cube", "--model", folder], str(folder)),
        "size": (["a cube", "--size", "65x64"], "size 65x64 does not fit"),
        "size words": (["a cube", "--size", "big"], "size 'big' must be WIDTHxHEIGHT"),
        "picture size": (["a cube", "--init", folder / "small.png"], "size 48x48 does not fit"),
        "missing picture": (["a cube", "--init", folder / "no.png"], "no picture"),
        "not a picture": (["a cube", "--init", folder / "text.png"], "not a picture"),
        "rising schedule": (["a cube", "--start", "0.2", "--end", "0.8"], "1 >= start > end >= 0"),
        "no levels": (["a cube", "--levels", "0"], "0 levels"),
        "no count": (["a cube", "--count", "0"], "count"),
        "noise": (["a cube", "--start-noise", "-1"], "start noise is -1.0"),
        "rank": (["a cube", "--phi-rank", "0"], "rank is 0"),
        "method": (["a cube", "--method", "magic"], "invalid choice: 'magic'"),
        "not a number": (["a cube", "--levels", "many"], "invalid int value: 'many'"),
        "lora on demo": (["a cube", "--lora", "x.safetensors"], "take no LoRA"),
        "folder is a file": (["a cube", "--out", folder / "file" / "out"], "is not a folder"),
    }


def test_bad_input_is_one_line_status_2_and_writes_nothing(tmp_path: Path):
    """The command's own entry, called as a function: a process for each would take minutes."""
    from dreamflow_core import cli

    for name, (arguments, message) in bad_inputs(tmp_path).items():
        out = tmp_path / "out"
        arguments = ["image", *([] if "--out" in arguments else ["--out", out]), *arguments]
        status, complaint = run_quietly(cli, list(map(str, arguments)))
        assert status == 2, name
        assert message in complaint, (name, complaint)
        assert complaint.count("\n") == 1, (name, complaint)
        assert not out.exists(), name


def run_quietly(cli, arguments: list[str]) -> tuple[int, str]:
    import contextlib
    import io

    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        try:
            status = cli.main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, stream.getvalue()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; run the tests as an ordinary user")
def test_read_only_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    done = dreamflow("image", "a cube", "--out", tmp_path / "out", *QUICK)
    assert done.returncode == 2 and "no permission" in done.stderr


def test_help_needs_no_model():
    done = dreamflow("image", "--help")
    assert done.returncode == 0
    assert "--phi-rank" in done.stdout and "default" in done.stdout
