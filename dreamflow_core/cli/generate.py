"""`dreamflow generate`: all stages."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..generate import generate
from ..mesh.files import save_mesh
from ..mesh.mesh import Mesh
from ..priors.families import find_family
from ..priors.load import HeadlessPrior, PriorSettings, job_of, load_prior
from ..scenes.mesh import look_at
from ..scenes.nerf import NeRFScene, save_field
from ..settings.presets import FAMILIES, OPTIMISED, PRESETS, Family, Plan, make_plan
from .options import add_controls, add_model_options, add_output, add_resume, add_settings, read_model, read_settings
from .run import Run
from .show import save_preview, save_turntable, warned

_FILES = ("loras", "controlnets", "hints")
"""Settings of a model that a stage may have of its own."""


def add_commands(commands: Any) -> None:
    usage = "dreamflow generate PROMPT --out FOLDER [options]"
    parser = commands.add_parser("generate", help="text to a textured mesh", description=_generate.__doc__, usage=usage)
    parser.set_defaults(command=_generate)
    add_output(parser)
    add_resume(parser)
    add_model_options(parser)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default=PRESETS[0], help=f"how much work is done (default: {PRESETS[0]})")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    add("--refiner", metavar="MODEL", help="as --model, for the last stage; without one that stage is left out")
    add("--refiner-cfg", type=float, metavar="X", help="as --cfg, for the refiner")
    add("--refiner-config", metavar="FOLDER", help="as --config, for the refiner")
    add("--refiner-vae", metavar="FILE|FOLDER", help="as --vae, for the refiner")
    for name in OPTIMISED:
        help_ = f"as --lora, for the {name} stage alone"
        add(f"--{name}-lora", dest=f"{name}_loras", action="append", default=[], metavar="FILE[:WEIGHT]", help=help_)
        add_controls(parser, name)
    shown = {f"{name}_size": "the model's own" for name in OPTIMISED}
    plans = (make_plan(preset, f, f, dict.fromkeys(OPTIMISED, f.size)) for f in FAMILIES.values() for preset in PRESETS)
    add_settings(parser, *plans, shown=shown)


def _generate(options: argparse.Namespace) -> None:
    """Text to a textured mesh: mesh.glb, turntable.png and turntable.gif, what each stage made, and run.json."""
    models = _models(options)
    families = {name: find_family(model.model, model.config) for name, model in models.items()}
    chosen = read_settings(options, _plan(options, families))
    priors = _load(models)
    files = {name: job_of(model) for name, model in models.items()}
    job = {
        "models": {name: asdict(model) for name, model in models.items()},
        "families": {name: family.name for name, (family, _) in families.items()},
        "plan": asdict(chosen),
    }
    stages = options.out / "stages"
    how = {"states": stages, "resume": options.resume, "save_every": options.save_every}
    run = Run(options.out, {**job, "seed": options.seed}, models, **how)

    def run_stage(name: str, function: Callable[..., Any]) -> Any:
        if name in models:
            job = {"model": files[name], "settings": asdict(getattr(chosen, name))}
            made = run.optimise(name, function, **job)
        else:
            made = run.timed(name, function)
        run.timed("pictures", lambda: _keep(made, stages, name))
        run.write_record()
        return made

    mesh = generate(chosen, priors, seed=options.seed, run=run_stage)
    save_mesh(options.out / "mesh.glb", mesh)
    print(f"wrote {options.out / 'mesh.glb'}")
    with warned(f"a turntable in {options.out}"):
        save_turntable(options.out, look_at(mesh), chosen.turntable)


def _models(options: argparse.Namespace) -> dict[str, PriorSettings]:
    """The model of each stage that is run."""
    base = read_model(options)

    def of_stage(name: str) -> PriorSettings:
        files: dict[str, Any] = {kind: [*getattr(base, kind), *getattr(options, f"{name}_{kind}")] for kind in _FILES}
        return replace(base, **files)

    models = {name: of_stage(name) for name in ("nerf", "tune")}
    # Files for the other model's kind do not fit this one.
    own = {f"refine_{kind}": kind for kind in _FILES} | {f"refiner_{name}": name for name in ("cfg", "config", "vae")}
    if options.refiner is None:
        for name in own:
            if getattr(options, name) not in (None, []):
                option = name.replace("_", "-").removesuffix("s")
                raise ValueError(f"--{option} is for the last stage, which is left out without a --refiner")
    else:
        others = {setting: getattr(options, name) for name, setting in own.items()}
        models["refine"] = replace(base, model=options.refiner, **others)
    return models


def _plan(options: argparse.Namespace, families: dict[str, tuple[Family, int]]) -> Plan:
    """The preset for the models' families and sizes; without a refiner the last stage's is never run."""
    base, refiner = families["nerf"], families.get("refine", families["nerf"])
    sizes = {"nerf": base[1], "tune": base[1], "refine": refiner[1]}
    asked = {name: getattr(options, f"{name}_size", size) for name, size in sizes.items()}
    return make_plan(options.preset, base[0], refiner[0], asked)


def _load(models: dict[str, PriorSettings]) -> dict[str, HeadlessPrior]:
    """The priors of models; stages that ask for the same share one."""
    priors: dict[str, HeadlessPrior] = {}
    for name, model in models.items():
        same = [other for other in priors if models[other] == model]
        priors[name] = priors[same[0]] if same else load_prior(model)
    return priors


def _keep(made: NeRFScene | Mesh, folder: Path, name: str) -> None:
    """Write what a stage made, and a picture of it."""
    if isinstance(made, NeRFScene):
        save_field(folder / f"{name}.safetensors", made)
    else:
        save_mesh(folder / f"{name}.glb", made)
    picture = folder / f"{name}.png"
    with warned(picture):
        save_preview(picture, made.view if isinstance(made, NeRFScene) else look_at(made))
