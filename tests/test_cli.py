"""The command as users run it: a process, its files, its exit status and its one line of complaint."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from dreamflow_core import cli
from dreamflow_core.cli.options import read_settings
from dreamflow_core.mesh.files import load_mesh
from dreamflow_core.scenes.nerf import load_field
from dreamflow_core.settings.presets import FAMILIES, OPTIMISED, make_plan

ROOT = Path(__file__).parent.parent
QUICK = ["--count", "1", "--levels", "3"]
FEW = ["--levels", 2, "--views", 1]
SMALL_FIELD = ["--samples", 24, "--coarse-size", 16, "--hidden", 8, "--grid-levels", 3, "--grid-entries-log2", 10]
SMALL_MESH = ["--faces", 400, "--texture-size", 64, "--resolution", 32]


def dreamflow(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dreamflow_core.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_text_to_image(tmp_path: Path):
    out = tmp_path / "new" / "folder"
    done = dreamflow("image", "a red cube", "--out", out, "--count", 2, "--levels", 3)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "image-0.png",
        "image-1.png",
        "image-state.safetensors",
        "run.json",
    ]
    assert pixels(out / "image-0.png").shape == (64, 64, 3)
    run = json.loads((out / "run.json").read_text())
    assert run["model"]["positive"] == "a red cube" and run["settings"]["schedule"]["levels"] == 3
    assert set(run["seconds"]["image"]) == {"render", "prior", "phi", "optimiser"}


WITH_LINES = "import sys; from dreamflow_core.cli import main, run; run.LINE_EVERY = {}; sys.exit(main())"
LINE = re.compile(r"image: step (\d+) of 12, level (\d)/6, sigma ([\d.]+), (done in |)([\d:]+)( left|)")
"""Of a run with two iterations a level."""


@pytest.mark.parametrize(("seconds", "steps"), [(1e9, [12]), (1e-9, list(range(2, 13)))])
def test_progress_is_whole_lines_where_no_terminal_is(tmp_path: Path, seconds: float, steps: list[int]):
    """One at the end, and one whenever enough time has passed since the last."""
    arguments = ["image", "a red cube", "--out", tmp_path, "--count", "1", "--levels", "6", "--iterations", "2"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_LINES.format(seconds), *arguments], cwd=ROOT, capture_output=True, check=True
    )
    assert b"\r" not in done.stderr
    lines = [LINE.fullmatch(line) for line in done.stderr.decode().splitlines()]
    assert [int(line[1]) for line in lines] == steps
    assert [int(line[2]) for line in lines] == [(step + 1) // 2 for step in steps]
    sigmas = [float(line[3]) for line in lines]
    assert sigmas == sorted(sigmas, reverse=True)
    assert [(line[4], line[6]) for line in lines] == [("", " left")] * (len(steps) - 1) + [("done in ", "")]


def test_long_preparations_show_themselves(tmp_path: Path):
    """A line for everything that takes time before the first iteration, whenever enough of it has passed."""
    mesh = trimesh.creation.icosphere(1, 0.7)
    mesh.export(tmp_path / "sphere.ply")
    arguments = ["refine", tmp_path / "sphere.ply", "a cube", "--out", tmp_path / "out", "--texture-size", "64", *FEW]
    program = [sys.executable, "-c", WITH_LINES.format(1e-9)]
    done = subprocess.run([*program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    work = ("finding what each texel shows", "painting the texture", "surveying the texture from all sides")
    places = [lines.index(f"refine: {what}, 100%") for what in work]
    assert places == sorted(places) and "refine: step 2 of 4" in done.stderr[done.stderr.index(lines[places[-1]]) :]


def test_a_terminal_gets_a_bar(tmp_path: Path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))  # not on Windows
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows and columns
    arguments = ["image", "a red cube", "--out", tmp_path, "--count", "1", "--levels", "6"]
    process = subprocess.Popen([sys.executable, "-m", "dreamflow_core.cli", *arguments], cwd=ROOT, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal without a writer ends
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    assert b"\rimage: " in shown and b"level 6/6" in shown and b" left" not in shown


def test_too_little_gpu_memory_says_what_takes_less(monkeypatch, capsys, tmp_path: Path):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("dreamflow_core.cli.image.images", fail)
    assert cli.main(["image", "a red cube", "--out", str(tmp_path)]) == cli.BAD_INPUT
    assert "--save-memory" in capsys.readouterr().err.splitlines()[-1]


def test_diffusers_model_with_a_lora(tmp_path: Path):
    """A local folder as --model, half precision, saving memory, a LoRA file, image to image, another size."""
    from test_diffusers_prior import make_lora, make_pipeline

    make_pipeline("sd1").save_pretrained(tmp_path / "model")
    make_lora(tmp_path / "lora.safetensors", "peft")
    Image.new("RGB", (96, 64), (200, 30, 30)).save(tmp_path / "start.png")
    arguments = ["--model", tmp_path / "model", "--lora", f"{tmp_path / 'lora.safetensors'}:0.5", "--dtype", "bf16"]
    arguments += ["--save-memory", "--init", tmp_path / "start.png", "--start", 0.5, "--out", tmp_path / "out", *QUICK]
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
    while not (out / "image-state.safetensors").exists() and time.monotonic() < deadline:
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
    while not (tmp_path / "out" / "image-state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after" in complaint and "--resume" in complaint
    assert "Traceback" not in complaint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small field and a mesh of it."""
    folder = tmp_path_factory.mktemp("made")
    run("nerf", "a red cube", "--out", folder, *FEW, *SMALL_FIELD)
    run("extract", folder / "nerf.safetensors", "--out", folder, *SMALL_MESH)
    return folder


def run(*arguments: object) -> None:
    """The command's own entry, called as a function: a process for each would take minutes."""
    assert cli.main(list(map(str, arguments))) == 0


def test_stages_one_by_one(made: Path, tmp_path: Path):
    assert {"nerf.safetensors", "nerf.png", "run.json", "mesh.glb", "extract.png"} <= {p.name for p in made.iterdir()}
    assert len(load_mesh(made / "mesh.glb").faces) <= 400
    for stage, format_ in (("tune", "obj"), ("refine", "ply")):
        run(stage, made / "mesh.glb", "a red cube", "--out", tmp_path / stage, "--format", format_, *FEW)
        assert len(load_mesh(tmp_path / stage / f"mesh.{format_}").faces) <= 400
        assert pixels(tmp_path / stage / f"{stage}.png").shape == (256, 512, 3)
        record = json.loads((tmp_path / stage / "run.json").read_text())
        assert record["settings"]["schedule"]["levels"] == 2 and record["seconds"][stage]["phi"] > 0
        assert record["peak_memory_mib"] and record["versions"]["torch"]
    for number, file in enumerate(("nerf.safetensors", "mesh.glb")):
        out = tmp_path / f"render{number}"
        run("render", made / file, "--out", out, "--views", 3, "--size", 20, "--elevation", -10)
        assert pixels(out / "turntable.png").shape == (20, 120, 3)
        with Image.open(out / "turntable.gif") as animation:
            assert animation.n_frames == 3


def test_a_field_goes_on_from_a_saved_one(made: Path, tmp_path: Path):
    run("nerf", "a blue cube", "--from", made / "nerf.safetensors", "--out", tmp_path, *FEW)
    assert load_field(tmp_path / "nerf.safetensors").settings.hidden == 8


def test_options_are_the_settings(tmp_path: Path):
    """What is given changes that setting of that stage alone; what is not keeps the preset's."""
    given = ["--tune-levels", "7", "--nerf-elevation", "-5", "50", "--refine-phi-rank", "3"]
    given += ["--nerf-grid-levels", "4", "--extract-threshold", "2.5", "--tune-unwrap"]
    options = cli._parser().parse_args(["generate", "a cube", "--out", str(tmp_path), *given])
    preset = make_plan("standard", FAMILIES["demo"], FAMILIES["demo"], dict.fromkeys(OPTIMISED, 64))
    read = read_settings(options, preset)
    assert read.tune.schedule == replace(preset.tune.schedule, levels=7)
    assert read.nerf.schedule == preset.nerf.schedule
    assert read.tune.stage.unwrap and not read.refine.stage.unwrap
    assert read.nerf.stage.views.elevation == (-5.0, 50.0)
    assert read.nerf.stage.scene.grid.levels == 4 and read.extract.threshold == 2.5
    assert read.refine.stage.phi.rank == 3 and read.nerf.stage.phi == preset.nerf.stage.phi


def generate_arguments(out: Path) -> list[str]:
    arguments: list[object] = ["generate", "a yellow cone", "--out", out, "--refiner", "demo", "--save-every", 0]
    for name, levels in (("nerf", 12), ("tune", 6), ("refine", 6)):
        arguments += [f"--{name}-levels", levels, f"--{name}-iterations", 1]
    small = zip(SMALL_MESH[::2], SMALL_MESH[1::2])
    arguments += [part for option, value in small for part in (option.replace("--", "--extract-"), value)]
    return list(map(str, arguments))


def test_generate_with_a_model_and_a_lora_for_each_stage(tmp_path: Path):
    """Diffusers models; a LoRA given to one stage is that stage's alone."""
    from test_diffusers_prior import make_lora, make_pipeline

    make_pipeline("sd1").save_pretrained(tmp_path / "model")
    make_lora(tmp_path / "lora.safetensors", "peft")
    lora = f"{tmp_path / 'lora.safetensors'}:0.5"
    out = tmp_path / "out"
    arguments = [*generate_arguments(out), "--model", tmp_path / "model", "--nerf-lora", lora]
    for name in ("nerf", "tune", "refine"):
        arguments += [f"--{name}-levels", 1, f"--{name}-views", 1]
    arguments[arguments.index("--refiner") + 1] = tmp_path / "model"
    run(*arguments)
    record = json.loads((out / "run.json").read_text())
    loras = {name: model["loras"] for name, model in record["models"].items()}
    assert loras == {"nerf": [lora], "tune": [], "refine": []}
    made = load_mesh(out / "mesh.glb")
    assert made.texture is not None and made.unlit


@pytest.mark.slow
def test_killed_in_each_stage_and_resumed(tmp_path: Path):
    """SIGKILL in each stage; the mesh that --resume ends with is that of an uninterrupted run, byte for byte."""
    assert dreamflow(*generate_arguments(tmp_path / "whole")).returncode == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "dreamflow_core.cli", *generate_arguments(out)]
    for stage in ("nerf", "tune", "refine"):
        resume = [] if stage == "nerf" else ["--resume"]
        process = subprocess.Popen([*command, *resume], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (out / "stages" / f"{stage}-state.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (out / "mesh.glb").exists()
    done = dreamflow(*generate_arguments(out), "--resume")
    assert done.returncode == 0, done.stderr
    assert (out / "mesh.glb").read_bytes() == (tmp_path / "whole" / "mesh.glb").read_bytes()
    assert {p.name for p in out.iterdir()} == {"mesh.glb", "turntable.png", "turntable.gif", "run.json", "stages"}
    assert not list((out / "stages").glob("*.part"))
    run = json.loads((out / "run.json").read_text())
    assert set(run["seconds"]) == {"nerf", "extract", "tune", "refine", "pictures"}
    assert set(run["models"]) == {"nerf", "tune", "refine"}


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
        "method": (["a cube", "--method", "magic"], "no method 'magic'"),
        "not a number": (["a cube", "--levels", "many"], "invalid int value: 'many'"),
        "lora on demo": (["a cube", "--lora", "x.safetensors"], "take no LoRA"),
        "folder is a file": (["a cube", "--out", folder / "file" / "out"], "is not a folder"),
    }


def bad_stage_inputs(folder: Path, made: Path) -> dict[str, tuple[list, str]]:
    mesh, field = made / "mesh.glb", made / "nerf.safetensors"
    (folder / "text.glb").write_text("not a mesh")
    (folder / "flat.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n")
    nan = "".join(f"v {x} 0 {y}\n" for x, y in (("nan", 0), (1, 0), (0, 1)))
    (folder / "nan.obj").write_text(nan + "f 1 2 3\n")
    (folder / "a file").write_text("")
    return {
        "unknown word": (["generate", "a red dragon"], "'dragon'"),
        "refiner": (["generate", "a cube", "--refiner", "nowhere"], "no model 'nowhere'"),
        "preset": (["generate", "a cube", "--preset", "magic"], "invalid choice: 'magic'"),
        "size of a later stage": (["generate", "a cube", "--tune-size", 96], "size 96x96 does not fit"),
        "schedule of a later stage": (["generate", "a cube", "--tune-start", 2], "1 >= start > end >= 0"),
        "later method": (["generate", "a cube", "--tune-method", "magic"], "no method 'magic'"),
        "later phi": (["generate", "a cube", "--tune-phi-level", "magic"], "phi's level is 'magic'"),
        "elevation": (["nerf", "a cube", "--elevation", 20, 95], "elevations must lie between -90 and 90"),
        "rate": (["nerf", "a cube", "--grid-rate", 0], "grid_rate is 0"),
        "background": (["nerf", "a cube", "--background", "plaid"], "background is 'plaid'"),
        "no field": (["nerf", "a cube", "--from", "nowhere.safetensors"], "no file nowhere.safetensors"),
        "lora": (["nerf", "a cube", "--lora", "x.safetensors"], "take no LoRA"),
        "a mesh as a field": (["extract", mesh], "mesh.glb cannot be loaded"),
        "a state as a field": (["extract", made / "nerf-state.safetensors"], "is not a radiance field"),
        "a normal map in OBJ": (
            ["tune", mesh, "a cube", "--optimise", "normal_map", "--format", "obj"],
            "--format obj keeps no normal map",
        ),
        "threshold": (["extract", field, "--threshold", 1e9], "lower the threshold"),
        "negative threshold": (["extract", field, "--threshold", -1], "threshold is -1"),
        "faces": (["extract", field, "--faces", 2], "face budget is 2"),
        "texture": (["extract", field, "--texture-size", 1], "texture size is 1"),
        "resolution": (["extract", field, "--resolution", 2], "at least 3 nodes"),
        "no resolution": (["extract", field, "--resolution", 0], "resolution is 0"),
        "grid levels": (["nerf", "a cube", "--grid-levels", 0], "levels is 0"),
        "grid features": (["nerf", "a cube", "--grid-features", -1], "features is -1"),
        "grid": (["nerf", "a cube", "--grid-coarsest", 0], "coarsest is 0"),
        "no number": (["nerf", "a cube", "--azimuth", "nan", "nan"], "azimuth is nan to nan"),
        "time between states": (["nerf", "a cube", "--save-every", "nan"], "saved states is nan"),
        "no mesh": (["tune", "nowhere.glb", "a cube"], "no file nowhere.glb"),
        "broken mesh": (["tune", folder / "text.glb", "a cube"], "text.glb cannot be used: its JSON is broken"),
        "a mesh without faces": (["tune", folder / "flat.ply", "a cube"], "flat.ply"),
        "NaN": (["tune", folder / "nan.obj", "a cube"], "NaN"),
        "format": (["refine", mesh, "a cube", "--format", "stl"], "invalid choice: 'stl'"),
        "target": (["refine", mesh, "a cube", "--optimise", "all"], "optimise is 'all'"),
        "mesh size": (["refine", mesh, "a cube", "--size", 63], "size 63x63 does not fit"),
        "mesh kind": (["render", folder / "a file"], "name must end in"),
        "views": (["render", mesh, "--views", 0], "views is 0"),
        "radius": (["render", mesh, "--radius", 1], "radii must be above 1"),
        "folder is a file": (["render", mesh, "--out", folder / "a file" / "out"], "is not a folder"),
    }


def test_bad_input_is_one_line_status_2_and_writes_nothing(tmp_path: Path, made: Path):
    images = {name: (["image", *arguments], message) for name, (arguments, message) in bad_inputs(tmp_path).items()}
    for name, (arguments, message) in [*images.items(), *bad_stage_inputs(tmp_path, made).items()]:
        out = tmp_path / "out"
        arguments = [*arguments, *([] if "--out" in arguments else ["--out", out])]
        status, complaint = run_quietly(list(map(str, arguments)))
        assert status == 2, name
        assert message in complaint, (name, complaint)
        assert complaint.count("\n") == 1, (name, complaint)
        assert not out.exists(), name


def run_quietly(arguments: list[str]) -> tuple[int, str]:
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
