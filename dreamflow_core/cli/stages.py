"""The stages one by one: `dreamflow nerf`, `extract`, `tune`, `refine` and `render`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..job import of_file
from ..mesh.files import READ_SUFFIXES, SUFFIXES, load_mesh, save_mesh
from ..mesh.mesh import Mesh
from ..mesh.prepare import framed
from ..pipeline import extract_mesh, optimise_mesh, optimise_nerf
from ..prior import Look
from ..priors.families import find_family
from ..priors.load import HeadlessPrior, job_of, load_prior
from ..scenes.mesh import look_at
from ..scenes.nerf import NeRFScene, load_field, save_field
from ..settings.presets import FAMILIES, PRESETS, Planned, planned
from ..settings.stages import ExtractSettings, TurntableSettings
from .options import add_model_options, add_output, add_resume, add_settings, read_model, read_settings
from .run import Run, check_folder, preparations
from .show import save_preview, save_turntable, warned


def add_commands(commands: Any) -> None:
    def add(name: str, function: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=summary, description=function.__doc__)
        parser.set_defaults(command=function, stage=name)
        return parser

    parser = add("nerf", _nerf, "text to a radiance field")
    parser.add_argument("--from", dest="field", type=Path, metavar="FIELD", help="a saved field to start from")
    _add_stage_options(parser, "nerf")
    parser = add("extract", _extract, "a radiance field to a mesh")
    parser.add_argument("field", type=Path, metavar="FIELD", help="a saved radiance field")
    add_output(parser)
    _add_format(parser)
    add_settings(parser, ExtractSettings())
    for name, summary in (("tune", "improve any mesh with a model"), ("refine", "the same with finer defaults")):
        parser = add(name, _optimise_mesh, summary)
        parser.add_argument("mesh", type=Path, metavar="MESH", help=f"a mesh file: {', '.join(READ_SUFFIXES)}")
        _add_format(parser)
        _add_stage_options(parser, name)
    parser = add("render", _render, "pictures of a mesh or a radiance field from all around")
    parser.add_argument("input", type=Path, metavar="FILE", help="a mesh file or a saved radiance field")
    add_output(parser)
    add_settings(parser, TurntableSettings())


def _add_stage_options(parser: argparse.ArgumentParser, name: str) -> None:
    add_output(parser)
    add_resume(parser)
    add_model_options(parser)
    parser.add_argument(
        "--preset", choices=PRESETS, default=PRESETS[0], help=f"of the defaults (default: {PRESETS[0]})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    plans = (planned(name, family, preset, family.size) for family in FAMILIES.values() for preset in PRESETS)
    add_settings(parser, *plans, shown={"size": "the model's own"})


def _add_format(parser: argparse.ArgumentParser) -> None:
    formats = [suffix.removeprefix(".") for suffix in SUFFIXES]
    parser.add_argument("--format", choices=formats, default=formats[0], help=f"of the mesh (default: {formats[0]})")


def _nerf(options: argparse.Namespace) -> None:
    """Text to a radiance field: nerf.safetensors and nerf.png."""
    start = None if options.field is None else load_field(options.field)
    prior, chosen, run, job = _prepare(options)
    optimise = partial(
        optimise_nerf, prior, chosen.schedule.build(prior.sigma_at), chosen.stage, seed=options.seed, start=start
    )
    if options.field is not None:
        job["from"] = of_file(options.field)
    field = run.optimise("nerf", optimise, **job)
    save_field(options.out / "nerf.safetensors", field)
    print(f"wrote {options.out / 'nerf.safetensors'}")
    run.write_record()
    _draw(options, field)


def _extract(options: argparse.Namespace) -> None:
    """A radiance field to a textured mesh: its file and extract.png."""
    check_folder(options.out)
    field = load_field(options.field)
    with preparations(options.stage):
        mesh = extract_mesh(field, read_settings(options, ExtractSettings()))
    _write_mesh(options, mesh)
    _draw(options, mesh)


def _optimise_mesh(options: argparse.Namespace) -> None:
    """Change a mesh so that it looks like the prompt: its file, a picture and run.json.

    The mesh may have any size and place, and needs no texture.
    """
    if getattr(options, "optimise", None) == "normal_map" and options.format != "glb":
        raise ValueError(f"--format {options.format} keeps no normal map, which is all that changes: use --format glb")
    kept_in = "the GLB file" if options.format == "glb" else ""
    # A preset's size asks for nothing: it is there for smaller textures.
    atlas_size = getattr(options, "texture_size", None)
    with preparations(options.stage):
        mesh = load_mesh(options.mesh, kept_in, atlas_size)
    prior, chosen, run, job = _prepare(options)
    schedule = chosen.schedule.build(prior.sigma_at)
    optimise = partial(optimise_mesh, prior, schedule, mesh, chosen.stage, seed=options.seed)
    changed = run.optimise(options.stage, optimise, **job, input=of_file(options.mesh))
    _write_mesh(options, changed)
    run.write_record()
    _draw(options, changed)


def _prepare(options: argparse.Namespace) -> tuple[HeadlessPrior, Planned[Any], Run, dict[str, Any]]:
    """The model, the settings and the run of a stage, and by what its saved state is known."""
    model = read_model(options)
    family, size = find_family(model.model, model.config)
    preset = planned(options.stage, family, options.preset, getattr(options, "size", size))
    chosen = read_settings(options, preset)
    prior = load_prior(model)
    job = {"model": asdict(model), "settings": asdict(chosen), "seed": options.seed}
    how = {"states": options.out, "resume": options.resume, "save_every": options.save_every}
    run = Run(options.out, {**job, "family": family.name}, [options.stage], **how)
    return prior, chosen, run, {**job, "model": job_of(model)}


def _write_mesh(options: argparse.Namespace, mesh: Mesh) -> None:
    path = options.out / f"mesh.{options.format}"
    save_mesh(path, mesh)
    print(f"wrote {path}")


def _draw(options: argparse.Namespace, made: NeRFScene | Mesh) -> None:
    path = options.out / f"{options.stage}.png"
    with warned(path):
        save_preview(path, _look(made))


def _render(options: argparse.Namespace) -> None:
    """Pictures from all around: turntable.png and turntable.gif."""
    check_folder(options.out)
    with preparations(options.stage):
        made = load_field(options.input) if options.input.suffix == ".safetensors" else load_mesh(options.input)
    save_turntable(options.out, _look(made), read_settings(options, TurntableSettings()))
    print(f"wrote {options.out / 'turntable.png'} and {options.out / 'turntable.gif'}")


def _look(made: NeRFScene | Mesh) -> Look:
    """What cameras see of a field, or of a mesh moved to where they see it."""
    return made.view if isinstance(made, NeRFScene) else look_at(framed(made)[0])
