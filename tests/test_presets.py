"""Settings by family: what is chosen for which model, and that the docs say so."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.families import table
from dreamflow_core.priors.families import find_family
from dreamflow_core.settings.presets import FAMILIES, OPTIMISED, PRESETS, field_of, make_plan, planned
from dreamflow_core.settings.scenes import NeRFSettings
from dreamflow_core.state import BadFile

ROOT = Path(__file__).resolve().parents[1]
PIPELINE, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"


def folder(path: Path, kind: str, width: int | None, cells: object = 64, levels: int = 4) -> Path:
    """The small files of a pipeline."""
    unet = {"cross_attention_dim": width, "sample_size": cells}
    files = {"model_index.json": {"_class_name": kind}, "unet/config.json": unet}
    files["vae/config.json"] = {"block_out_channels": [8] * levels}
    for name, values in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("kind", "width", "cells", "levels", "family", "size"),
    [
        (PIPELINE, 768, 64, 4, "sd1", 512),
        (PIPELINE, 1024, 96, 4, "sd2", 768),
        (XL, 2048, 128, 4, "sdxl", 1024),
        ("StableDiffusionXLImg2ImgPipeline", 1280, 128, 4, "sdxl-refiner", 1024),
        (PIPELINE, 128, 32, 3, "sd1", 128),
        (PIPELINE, 768, [64, 96], 4, "sd1", 512),
        (XL, 2048, None, 4, "sdxl", 1024),
    ],
)
def test_a_model_is_known_by_its_files(tmp_path, kind, width, cells, levels, family, size):
    found, side = find_family(str(folder(tmp_path / "model", kind, width, cells, levels)))
    assert (found.name, side) == (family, size)
    (tmp_path / "one.safetensors").touch()
    assert find_family(str(tmp_path / "one.safetensors"), str(tmp_path / "model")) == (found, side)


def test_widths_by_level_are_those_of_one_model(tmp_path):
    assert find_family(str(folder(tmp_path, XL, [2048] * 3, 128))) == (FAMILIES["sdxl"], 1024)


@pytest.mark.parametrize("cells", [0, "64", [], -8])
def test_sizes_that_are_none_are_refused_with_the_files_name(tmp_path, cells):
    with pytest.raises(BadFile, match=r"unet.config\.json cannot be loaded"):
        find_family(str(folder(tmp_path, PIPELINE, 768, cells)))


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        planned("nerf", FAMILIES["sd1"], "draft", 0)


def test_the_demo_models_are_one_family():
    assert find_family("demo") == (FAMILIES["demo"], 64) and find_family("demo-refiner") == (FAMILIES["demo"], 128)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no model 'nothing'"):
        find_family("nothing")
    with pytest.raises(BadFile, match="is not a diffusers pipeline"):
        find_family(str(tmp_path))
    with pytest.raises(BadFile, match="is a FluxPipeline; supported are StableDiffusionPipeline"):
        find_family(str(folder(tmp_path, "FluxPipeline", 768)))
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ValueError, match="needs a config"):
        find_family(str(tmp_path / "one.safetensors"))


def test_image_and_grid_go_together():
    """One number sets the finest cells, which are about a pixel wide, and what a ray needs to meet them."""
    assert field_of(64) == NeRFSettings()
    sizes = (8, 64, 128, 256, 512, 768, 1024)
    fields = [field_of(size) for size in sizes]
    assert [f.size for f in fields] == [f.grid.finest for f in fields] == list(sizes)
    for what in (lambda f: f.grid.levels, lambda f: f.samples, lambda f: f.coarse_size):
        values = [what(f) for f in fields]
        assert values == sorted(values)
    assert all(f.grid.coarsest <= f.grid.finest and f.coarse_size <= f.size for f in fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_presets_do_more_and_more(family):
    def views(preset):
        stages = (planned(name, FAMILIES[family], preset, 64) for name in OPTIMISED)
        return [p.schedule.levels * p.schedule.iterations * p.stage.views.views for p in stages]

    work = [views(preset) for preset in PRESETS]
    assert all(a < b for less, more in pairwise(work) for a, b in zip(less, more))


def test_each_stage_takes_its_own_models_row():
    plan = make_plan("draft", FAMILIES["sd1"], FAMILIES["sdxl-refiner"], {"nerf": 512, "tune": 512, "refine": 1024})
    assert plan.nerf.stage.scene.grid.finest == plan.tune.stage.scene.size == 512
    assert plan.refine.stage.scene.size == 1024 and plan.refine.stage.texture_size == 2 * plan.extract.texture_size
    assert (plan.nerf.schedule.start, plan.nerf.schedule.end) == (1.0, 0.2)


def test_the_docs_have_the_table():
    assert table() in (ROOT / "docs" / "headless.md").read_text()
