"""Which run a saved state is of: files by their contents, and what an earlier version did not save."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_apfo import tiny_run

from dreamflow_core import cli, state
from dreamflow_core.apfo import Cancelled, Checkpoint
from dreamflow_core.job import differences, digest, of_file
from dreamflow_core.state import BadFile, load_state, save_state

LARGE = 9_000_000
"""Bytes of a file that is not read whole."""
FEW = ("--count", 1, "--levels", 2)


def command(*arguments: object) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        status = cli.main(list(map(str, arguments)))
    return status, stream.getvalue()


@pytest.mark.parametrize("size", [0, 1, 100_000, LARGE])
def test_a_file_is_its_contents_wherever_it_lies(size: int, tmp_path: Path):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)).numpy()
    first, other = tmp_path / "first.bin", tmp_path / "elsewhere" / "other.bin"
    first.write_bytes(data.tobytes())
    other.parent.mkdir()
    shutil.copy(first, other)
    assert digest(first) == digest(other)
    other.write_bytes(data.tobytes() + b"\0")
    assert digest(first) != digest(other)
    for place in {0, size - 1} if size else set():
        changed = data.copy()
        changed[place] ^= 1
        other.write_bytes(changed.tobytes())
        assert digest(first) != digest(other), place


def test_a_large_file_that_was_written_anew_is_another(tmp_path: Path):
    """Weights of the same names and shapes, one of its tensors made anew; a name deep in a long header."""
    weights = {f"layer.{number}": torch.full((64, 64), 1.0) for number in range(800)}
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    before, size = digest(path), path.stat().st_size
    assert size > 8e6
    trained = {name: value + 1e-3 if int(name[6:]) in range(400, 420) else value for name, value in weights.items()}
    save_file(trained, path)
    assert path.stat().st_size == size and digest(path) != before
    renamed = dict(weights)
    renamed["other.777"] = renamed.pop("layer.777")
    save_file(renamed, path)
    assert path.stat().st_size == size and digest(path) != before


def test_a_model_s_folder_is_the_same_after_it_was_moved(tmp_path: Path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    save_file({"w": torch.ones(3)}, folder / "unet" / "model.safetensors")
    before = digest(folder)
    (folder / "README.md").write_text("what it was trained on")
    assert digest(shutil.move(folder, tmp_path / "moved")) == before
    folder = tmp_path / "moved"
    (folder / "model_index.json").write_text('{"_class_name": "other"}')
    assert digest(folder) != before
    (folder / "model_index.json").write_text("{}")
    assert digest(folder) == before
    save_file({"w": torch.zeros(3)}, folder / "unet" / "model.safetensors")
    assert digest(folder) != before


def test_what_differs_is_named():
    def file(name: str, digest: str, **more: object) -> dict:
        return {"file": name, "digest": digest, **more}

    for saved, job, named in (
        ({"model": file("a", "1")}, {"model": file("moved/b", "1")}, []),
        ({"model": file("a", "1")}, {"model": file("a", "2")}, ["the contents of a"]),
        ({"loras": [file("a:1", "1", weight=1.0)]}, {"loras": [file("a:2", "1", weight=2.0)]}, ["loras.weight"]),
        ({"loras": [file("a", "1")]}, {"loras": []}, ["loras"]),
        # What an earlier version saved of a file: its name, or nothing.
        ({"model": "a"}, {"model": file("a", "1")}, []),
        ({"model": "a"}, {"model": file("b", "1")}, ["model"]),
        ({}, {"input": file("a", "1")}, []),
        # A setting that it did not know.
        ({"model": {"cfg": 2.0}}, {"model": {"cfg": 2.0, "vae": None, "words": []}}, []),
        ({"model": {"cfg": 2.0}}, {"model": {"cfg": 3.0, "clip": 2}}, ["model.cfg", "model.clip"]),
        ({"model": file("a", "1")}, {"model": "demo"}, ["model"]),
        ({"levels": [3, 2, 1]}, {"levels": [3, 2]}, ["levels"]),
        ({"model": None}, {"model": file("a", "1")}, ["model"]),
    ):
        assert list(differences(saved, job)) == named, (saved, job)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(BadFile, match=r"no file .*gone"):
        of_file(tmp_path / "gone.obj")


def test_a_save_that_fails_is_one_warning_and_the_last_good_state_stays(tmp_path: Path, monkeypatch, caplog):
    path = tmp_path / "state.safetensors"
    replace, saves = state.os.replace, []

    def full_after_three(*names):
        saves.append(names)
        if len(saves) > 3:
            raise OSError(28, "No space left on device")
        replace(*names)

    monkeypatch.setattr(state.os, "replace", full_after_three)
    with caplog.at_level(logging.WARNING):
        made = tiny_run(checkpoint=Checkpoint(path, {}, every=0))
    # Eight iterations and the end.
    assert len(saves) == 9
    (warning,) = caplog.messages
    assert str(path) in warning and "No space left on device" in warning
    assert load_state(path)["loop"]["step"] == 3
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.equal(made, tiny_run())
    assert torch.equal(tiny_run(checkpoint=Checkpoint(path, {}, resume=True)), made)


def test_a_stopped_run_that_cannot_be_saved_still_stops(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(Cancelled, match="stopped after 0"), caplog.at_level(logging.WARNING):
        tiny_run(checkpoint=Checkpoint(tmp_path / "file" / "state", {}), cancelled=lambda: True)
    assert str(tmp_path / "file" / "state") in caplog.text


def test_a_state_whose_insides_are_foreign_is_named(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    tiny_run(checkpoint=Checkpoint(path, {}))
    saved = load_state(path)
    for change in ({"loop": {}}, {"loop": {**saved["loop"], "phi": {"lora": {}}}}, {"job": 3}):
        save_state(path, {**saved, **change})
        with pytest.raises(BadFile, match=r"state\.safetensors") as caught:
            tiny_run(checkpoint=Checkpoint(path, {}, resume=True))
        assert "\n" not in str(caught.value)


def test_a_new_run_removes_its_own_state_alone(tmp_path: Path):
    others = ("nerf-state.safetensors", "my-state.safetensors")
    save_state(tmp_path / others[0], {"job": {}})
    (tmp_path / others[1]).write_bytes(b"of the user")
    assert command("image", "a red cube", "--out", tmp_path, *FEW)[0] == 0
    assert command("image", "a blue cube", "--out", tmp_path, *FEW)[0] == 0
    assert all((tmp_path / name).exists() for name in others)
    own = tmp_path / "image-state.safetensors"
    own.write_bytes(b"of the user")
    status, complaint = command("image", "a red cube", "--out", tmp_path, *FEW)
    assert status == 2 and complaint.count("\n") == 1 and f"{own} is not a saved state" in complaint
    assert own.read_bytes() == b"of the user"


def test_a_run_goes_on_with_moved_files_and_refuses_replaced_ones(tmp_path: Path):
    from test_diffusers_prior import make_lora, make_pipeline

    model, lora, picture = tmp_path / "model", tmp_path / "style.safetensors", tmp_path / "start.png"
    make_pipeline("sd1").save_pretrained(model)
    vae = shutil.copytree(model / "vae", tmp_path / "vae")
    make_lora(lora, "peft")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)

    def resume(model: Path, weight: float = 0.5) -> tuple[int, str]:
        files = ("--model", model, "--vae", vae, "--lora", f"{lora}:{weight}", "--init", picture)
        return command("image", "cat", *files, "--resume", "--out", tmp_path / "out", *FEW)

    assert resume(model)[0] == 0
    moved = shutil.move(model, tmp_path / "moved")
    assert resume(moved)[0] == 0
    status, complaint = resume(moved, 0.7)
    assert status == 2 and "differs in model.loras.weight" in complaint
    weights = load_file(lora)
    save_file({name: value * 2 for name, value in weights.items()}, lora)
    status, complaint = resume(moved)
    assert status == 2 and f"the contents of {lora}" in complaint.splitlines()[-1]
    save_file(weights, lora)
    assert resume(moved)[0] == 0
    Image.new("RGB", (64, 64), (200, 31, 30)).save(picture)
    status, complaint = resume(moved)
    assert status == 2 and f"the contents of {picture}" in complaint
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)
    (weights_of_vae,) = vae.glob("*.safetensors")
    save_file({name: value * 2 for name, value in load_file(weights_of_vae).items()}, weights_of_vae)
    status, complaint = resume(moved)
    assert status == 2 and f"the contents of {vae}" in complaint.splitlines()[-1]


def test_a_foreign_record_is_named(tmp_path: Path):
    for text in ("", "[]", "{}", '{"seconds": 3}', "not JSON"):
        (tmp_path / "run.json").write_text(text)
        status, complaint = command("image", "a red cube", "--resume", "--out", tmp_path, *FEW)
        assert status == 2 and complaint.count("\n") == 1 and "run.json" in complaint, (text, complaint)


def test_a_model_without_its_words_is_named(tmp_path: Path):
    """transformers would make a tokenizer that knows no word, and say nothing."""
    from test_diffusers_prior import make_pipeline

    model = tmp_path / "model"
    make_pipeline("sd1").save_pretrained(model)
    for file in (model / "tokenizer").glob("*"):
        if file.name != "tokenizer_config.json":
            file.unlink()
    status, complaint = command("image", "cat", "--model", model, "--out", tmp_path, *FEW)
    assert status == 2 and f"{model / 'tokenizer'} holds no tokenizer" in complaint.splitlines()[-1]
    (model / "model_index.json").write_text("[]")
    status, complaint = command("image", "cat", "--model", model, "--out", tmp_path, *FEW)
    assert status == 2 and "model_index.json is not a file of settings" in complaint.splitlines()[-1]
