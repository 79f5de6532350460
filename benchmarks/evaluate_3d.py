"""Whether text to 3D makes what the prompt asked for, stage by stage, against the truth renderer.

    python benchmarks/evaluate_3d.py [--prompts 24] [--seeds 2] [--preset draft] [--refiner demo-refiner]
                                     [--control none|frozen|wrong|untrained] [--jobs 1] [--device cpu]
                                     [--fields evaluation/fields] [--out evaluation/3d]

Prompts cover all shapes, colours and patterns. Every result is looked at by 24 cameras all around and
compared with the true object, turned about its vertical axis to where it fits best (by how far is
reported: an object with a front must not be turned). One JSON row a prompt and seed is kept in the output
folder, so a run that is stopped goes on where it was; pictures of all results and a table end it. Radiance
fields, which take most of the time, are kept in a folder of their own, by their settings and weights: remove it
when the code that makes them has changed, and name one for each device. Needs the Khronos validator
(`npm install -g gltf-validator`) or --no-tools.

Negative controls: "frozen" lets phi learn nothing, "wrong" grades against another prompt, "untrained"
uses a model with random weights. They should fall short.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from other_tools import Missing, cast, khronos_complaints, validator_folder
from torch import Tensor

from dreamflow_core.cameras import Cameras, orbit
from dreamflow_core.demo import truth
from dreamflow_core.demo.judge import Judge, grade, load_judge
from dreamflow_core.demo.model import MODELS, DemoModel, load_model
from dreamflow_core.demo.shapes import WITH_FRONT
from dreamflow_core.demo.truth import COLOURS, PATTERNS, Pattern, Surface
from dreamflow_core.demo.vocabulary import SLOTS, Description
from dreamflow_core.generate import generate
from dreamflow_core.mesh import topology
from dreamflow_core.mesh.files import load_mesh, save_mesh
from dreamflow_core.mesh.mesh import BadMesh, Mesh
from dreamflow_core.pictures import contact_sheet, load_picture, save_picture
from dreamflow_core.prior import Look
from dreamflow_core.priors.demo import CFG, DemoPrior
from dreamflow_core.scenes.mesh import look_at
from dreamflow_core.scenes.nerf import NeRFScene, load_field, save_field
from dreamflow_core.settings.presets import FAMILIES, OPTIMISED, PRESETS, Plan, make_plan
from dreamflow_core.state import make_generator, write_bytes
from dreamflow_core.views import View

T = TypeVar("T")

VIEWS, SIZE, ELEVATION = 24, 64, 20.0
FINEST_TURN = 5.0
"""Degrees; the azimuth is free, so an object is compared turned by the best multiple of this."""
WHITE = (0.97, 0.97, 0.97)
STEEP = 60.0
"""Elevation from which a flat ring's hole is looked into."""

BOUNDS = {
    "made": ("runs that end with a mesh", 1.0, 1.0),
    "colour": ("prompted colours, views", 0.98, None),
    "shape": ("shape by the judge, views", 0.95, None),
    "pattern": ("pattern by the judge, views", None, None),
    "iou": ("silhouette IoU, mean", 0.90, 0.75),
    "psnr": ("PSNR of plain objects, dB", 20.0, 20.0),
    "facing": ("front and back as asked", 1.0, 1.0),
    "hole": ("holes open", 1.0, 1.0),
    "sound": ("closed, outward, one piece, in budget", 1.0, 1.0),
    "valid": ("the Khronos validator has no error", 1.0, 1.0),
    "embree": ("PSNR of Embree's pictures to ours, dB", 25.0, 25.0),
}
"""What each measure is, the least its mean may be and the least that any run may have, where that is bounded."""


@dataclass(frozen=True)
class Truth:
    """What 24 cameras see of the object that a prompt asks for.

    Attributes:
        surface: of the shape.
        pictures: (24, 3, SIZE, SIZE) on white; of one sample of the pattern.
    """

    description: Description
    surface: Surface
    pictures: Tensor

    @classmethod
    def of(cls, description: Description) -> Truth:
        cameras = orbit(VIEWS, ELEVATION, truth.CAMERA_RADIUS, truth.CAMERA_FOV)
        surface = truth.trace(description.shape, cameras, SIZE)
        one = Pattern.sample(description.pattern, 1, make_generator(0, "pattern"))
        pattern = replace(one, **{n: getattr(one, n).expand(VIEWS, *getattr(one, n).shape[1:]) for n in _VARYING})
        names = (description.colour, description.second or description.colour)
        colours = [torch.tensor(COLOURS[name]).expand(VIEWS, 3) for name in names]
        white = torch.tensor(WHITE).expand(VIEWS, 3)
        return cls(
            description, surface, truth.paint(surface.alpha, surface.shade(), pattern.mask(surface), *colours, white)
        )


_VARYING = ("frame", "frequency", "phase")


def choose_prompts(count: int) -> list[Description]:
    """`count` descriptions that go through all shapes, colours and patterns evenly."""
    shapes, colours = SLOTS["shape"], SLOTS["colour"]
    chosen = []
    for i in range(count):
        turn = i // len(shapes)
        # Plain objects first, so that a few prompts are those whose truth is a single object.
        pattern = PATTERNS[(turn + (i % len(shapes) if turn else 0)) % len(PATTERNS)]
        colour, second = (colours[(i + turn + shift) % len(colours)] for shift in (0, 3))
        other = None if pattern == "plain" else second
        chosen.append(Description(shapes[i % len(shapes)], colour, other, pattern))
    return chosen


def measure(look: Look, true: Truth, judge: Judge | None) -> dict[str, Any]:
    """How what a look shows compares with the truth; shares are of views."""
    view = look(orbit(VIEWS, ELEVATION, truth.CAMERA_RADIUS, truth.CAMERA_FOV), SIZE)
    pictures = view.on(WHITE)
    turn, overlap, psnr = best_turn(look, true, view)
    row: dict[str, Any] = {
        "iou": overlap.mean().item(),
        "least_iou": overlap.min().item(),
        "turned": turn,
        "sharpness": sharpness(pictures, view.alpha),
        "mean_colour": mean_colour(view.colour, view.alpha),
    }
    description = true.description
    if description.pattern == "plain":
        row["psnr"] = psnr
    if description.shape in WITH_FRONT:
        row["facing"] = float(abs(turn) <= 45)
    if description.shape == "torus":
        row["hole"] = float(hole_is_open(look))
    if judge is not None:
        verdict = grade(judge, pictures, [description] * VIEWS)
        row |= {name: getattr(verdict, name).float().mean().item() for name in ("colour", "shape", "pattern")}
    return row


def best_turn(look: Look, true: Truth, unturned: View) -> tuple[float, Tensor, float]:
    """Degrees by which the object has to be turned to fit best, to `FINEST_TURN`; its overlaps (24,) and PSNR then.

    `unturned` is what `look` shows to the cameras of the truth.
    """
    cameras, apart = orbit(VIEWS, ELEVATION, truth.CAMERA_RADIUS, truth.CAMERA_FOV), 360 / VIEWS
    solid = true.surface.alpha > 0.5
    found = []
    for finer in torch.arange(0, apart, FINEST_TURN).tolist():
        view = look(replace(cameras, azimuth=cameras.azimuth - finer), SIZE) if finer else unturned
        pictures = view.on(WHITE)
        for step in range(VIEWS):
            alpha, shown = view.alpha.roll(step, 0) > 0.5, pictures.roll(step, 0)
            overlap = (alpha & solid).sum((1, 2, 3)) / (alpha | solid).sum((1, 2, 3)).clamp_min(1)
            psnr = float(-10 * (shown - true.pictures).square().mean().log10())
            # Patterns have random phases, so their pictures say little; of symmetric outlines the picture decides.
            fit = psnr if true.description.pattern == "plain" else 100 * overlap.mean().item() + psnr
            found.append((fit, (step * apart + finer + 180) % 360 - 180, overlap, psnr))
    return max(found, key=lambda entry: entry[0])[1:]


def hole_is_open(look: Look) -> bool:
    """Whether the middle of a flat ring is seen through from steeply above."""
    alpha = look(orbit(4, STEEP, truth.CAMERA_RADIUS, truth.CAMERA_FOV), SIZE).alpha
    middle = slice(SIZE // 2 - 1, SIZE // 2 + 1)
    return bool((alpha[:, :, middle, middle] < 0.5).all())


def sharpness(pictures: Tensor, alpha: Tensor) -> float:
    """Mean difference between the object and its blurred self, away from the outline."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    inside = -F.max_pool2d(-alpha, 5, stride=1, padding=2) > 0.99
    difference = (pictures - blurred).abs().mean(1, keepdim=True)[inside]
    return difference.mean().item() if len(difference) else 0.0


def mean_colour(colour: Tensor, alpha: Tensor) -> list[float]:
    """Of the object over all views, from 0 to 255."""
    return (255 * colour.sum((0, 2, 3)) / alpha.sum().clamp_min(1e-6)).tolist()


def is_sound(mesh: Mesh, budget: int) -> bool:
    """Closed, facing outward, in one piece and within its budget of faces."""
    faces = topology.weld(mesh.vertices)[1][mesh.faces]
    outward = topology.face_volumes(mesh.vertices, mesh.faces).sum() > 0
    one_piece = topology.components(faces).max() == 0
    return bool(topology.is_closed(faces) and outward and one_piece and len(faces) <= budget)


def embree_psnr(path: Path) -> float:
    """Of what another renderer sees in a file to what ours sees, dB."""
    cameras = orbit(6, ELEVATION, truth.CAMERA_RADIUS, truth.CAMERA_FOV)
    ours, theirs = look_at(load_mesh(path))(cameras, SIZE).on(WHITE), cast(path, cameras, SIZE, WHITE)
    return float(-10 * (ours - theirs).square().mean().log10())


def refine_row(before: dict[str, Any], after: dict[str, Any], true: Truth) -> dict[str, float]:
    """What refining changed: sharpness and PSNR nearer to the truth, and by how much more the mean colour is off.

    Noise is sharp too, so sharpness counts by its distance to the truth's. Colours are of 255.
    """
    goal = sharpness(true.pictures, true.surface.alpha)
    row = {"sharper": abs(before["sharpness"] - goal) - abs(after["sharpness"] - goal)}
    if "psnr" in after:
        alpha = true.surface.alpha
        target = mean_colour(true.pictures - (1 - alpha) * torch.tensor(WHITE).view(1, 3, 1, 1), alpha)
        off = [[abs(c - t) for c, t in zip(stage["mean_colour"], target)] for stage in (before, after)]
        row |= {"closer": after["psnr"] - before["psnr"], "drift": max(a - b for b, a in zip(*off))}
    return row


def load_priors(options: argparse.Namespace, prompt: str) -> dict[str, DemoPrior]:
    names = {"nerf": options.model, "tune": options.model}
    if options.refiner:
        names["refine"] = options.refiner
    models = {name: load_model(MODELS.get(name, Path(name))) for name in set(names.values())}
    if options.control == "untrained":
        models = {name: untrained(model) for name, model in models.items()}
    return {stage: DemoPrior(models[name].to(options.device), prompt, cfg=options.cfg) for stage, name in names.items()}


def untrained(model: DemoModel) -> DemoModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DemoModel(model.config)


def plan_for(options: argparse.Namespace, priors: dict[str, DemoPrior]) -> Plan:
    demo, sizes = FAMILIES["demo"], {name: prior.default_size[0] for name, prior in priors.items()}
    chosen = make_plan(options.preset, demo, demo, {"refine": demo.size, **sizes})
    for name in priors:
        planned = getattr(chosen, name)
        if options.control == "frozen":
            phi = replace(planned.stage.phi, learning_rate=0.0)
            planned = replace(planned, stage=replace(planned.stage, phi=phi))
        chosen = replace(chosen, **{name: planned})
    return chosen


def evaluate(description: Description, seed: int, options: argparse.Namespace, judge: Judge | None) -> dict[str, Any]:
    """One row, with the mesh and a picture of every stage beside it."""
    prompt, name = description.prompt(), slug(description, seed)
    priors = load_priors(options, prompt)
    chosen = plan_for(options, priors)
    graded = replace(description, shape=following(description.shape), colour=following(description.colour))
    true = Truth.of(graded if options.control == "wrong" else description)
    stages: dict[str, dict[str, Any]] = {}
    looks: dict[str, Look] = {}

    def run(stage: str, function):
        kept = partial(keep_field, name, chosen, options)
        made, seconds = kept(function) if stage == "nerf" else timed(function)
        looks[stage] = look_of_field(made) if isinstance(made, NeRFScene) else look_at(made)
        stages[stage] = {"cpu_seconds": seconds, **measure(looks[stage], true, judge)}
        return made

    row: dict[str, Any] = {"prompt": prompt, "seed": seed, "made": 1.0, "stages": stages}
    try:
        mesh = generate(chosen, priors, seed=seed, run=run)
    except BadMesh as error:
        return {**row, "made": 0.0, "error": str(error)}
    path = options.out / f"{name}.glb"
    save_mesh(path, mesh)
    save_picture(options.out / f"{name}.png", sheet(looks, true))
    row |= {**stages[list(stages)[-1]], "sound": float(is_sound(mesh, chosen.extract.faces))}
    if not options.no_tools:
        row |= {"embree": embree_psnr(path), "valid": float(not khronos_complaints(path))}
    if "refine" in stages:
        row["refine"] = refine_row(stages["tune"], stages["refine"], true)
    return row


def look_of_field(field: NeRFScene) -> Look:
    """What cameras see of a radiance field, on the CPU wherever the field is."""

    def look(cameras: Cameras, size: int) -> View:
        view = field.view(cameras, size)
        return View(view.colour.cpu(), view.alpha.cpu(), view.depth.cpu(), view.normal.cpu())

    return look


def keep_field(
    name: str, plan: Plan, options: argparse.Namespace, make: Callable[[], NeRFScene]
) -> tuple[NeRFScene, float]:
    """A field and the CPU seconds it took: one kept with the same settings and weights, or a new one."""
    weights = sha256(MODELS.get(options.model, Path(options.model)).read_bytes()).hexdigest()
    others = {"weights": weights, "cfg": options.cfg, "untrained": options.control == "untrained"}
    source = json.dumps({"plan": asdict(plan.nerf), **others})
    path = options.fields / f"{name}-{sha256(source.encode()).hexdigest()[:12]}"
    file, record = path.with_suffix(".safetensors"), path.with_suffix(".json")
    if record.exists():
        return load_field(file, options.device), json.loads(record.read_text())["cpu_seconds"]
    field, seconds = timed(make)
    save_field(file, field)
    write_bytes(record, json.dumps({"cpu_seconds": seconds}).encode())
    return field, seconds


def timed(make: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the CPU seconds it took."""
    started = time.process_time()
    return make(), time.process_time() - started


def following(value: str) -> str:
    """Another value of the same slot."""
    values = next(values for values in SLOTS.values() if value in values)
    return values[(values.index(value) + 1) % len(values)]


def slug(description: Description, seed: int) -> str:
    return "-".join([*description.prompt().split()[1:], str(seed)])


def sheet(looks: dict[str, Look], true: Truth) -> Tensor:
    """A row of views of the truth and of each stage."""
    cameras = orbit(6, ELEVATION, truth.CAMERA_RADIUS, truth.CAMERA_FOV)
    rows = [true.pictures[:: VIEWS // 6], *(look(cameras, SIZE).on(WHITE) for look in looks.values())]
    return contact_sheet(torch.cat(rows), columns=6)


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table: each measure's mean and worst over the rows, by stage, and whether the bounds hold."""
    lines = [f"{len(rows)} runs"]
    names = max((list(row["stages"]) for row in rows), key=len)
    for name, (label, least_mean, least) in BOUNDS.items():
        values = [row[name] for row in rows if name in row]
        if not values:
            continue
        worst = min(row["least_iou"] for row in rows if row["made"]) if name == "iou" else min(values)
        holds = all(bound is None or value >= bound for value, bound in ((fmean(values), least_mean), (worst, least)))
        verdict = "" if least_mean is None else "holds" if holds else "FAILS"
        by_stage = "  ".join(
            f"{stage} {fmean(of_stage):.3g}"
            for stage in names
            if (of_stage := [row["stages"][stage][name] for row in rows if name in row["stages"].get(stage, {})])
        )
        lines.append(f"{label:40s} mean {fmean(values):6.3f}  worst {worst:6.3f}  {verdict:5s}  {by_stage}")
    for name in ("sharper", "closer", "drift"):
        values = [row["refine"][name] for row in rows if name in row.get("refine", {})]
        if values:
            lines.append(
                f"refine: {name:32s} mean {fmean(values):6.4f}  least {min(values):6.4f}  most {max(values):6.4f}"
            )
    seconds = {s: fmean(row["stages"][s]["cpu_seconds"] for row in rows if s in row["stages"]) for s in names}
    return [*lines, "CPU seconds: " + "  ".join(f"{stage} {value:.0f}" for stage, value in seconds.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0])
    parser.add_argument("--model", default="demo", help="name or file of a demo model")
    parser.add_argument("--refiner", default=None, help="name or file of a demo model")
    parser.add_argument("--cfg", type=float, default=CFG)
    parser.add_argument("--control", choices=("none", "frozen", "wrong", "untrained"), default="none")
    parser.add_argument("--no-judge", action="store_true", help="leave out what needs the judge")
    parser.add_argument("--no-tools", action="store_true", help="leave out what needs the validator and Embree")
    parser.add_argument("--device", default="cpu", help="of the models: cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--fields", type=Path, default=Path("evaluation/fields"), help="where radiance fields are kept")
    parser.add_argument("--out", type=Path, default=Path("evaluation/3d"))
    options = parser.parse_args()
    if not options.no_tools:
        check_tools()
    judge = None if options.no_judge else load_judge()
    path = options.out / "rows.json"
    preset = make_plan(
        options.preset, FAMILIES["demo"], FAMILIES["demo"], dict.fromkeys(OPTIMISED, FAMILIES["demo"].size)
    )
    job = {"preset": asdict(preset), **{n: getattr(options, n) for n in _JOB}}
    rows = resume(path, json.loads(json.dumps(job)))
    done = {(row["prompt"], row["seed"]) for row in rows}
    prompts = choose_prompts(options.prompts)
    threads = max(1, torch.get_num_threads() // options.jobs)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        runs = [
            pool.submit(evaluate, description, seed, options, judge)
            for seed in range(options.seeds)
            for description in prompts
            if (description.prompt(), seed) not in done
        ]
        for run in as_completed(runs):
            rows.append(run.result())
            write_bytes(path, json.dumps({"job": job, "rows": rows}, indent=1).encode())
            print(json.dumps({k: v for k, v in rows[-1].items() if k not in ("stages", "mean_colour")}), flush=True)
    text = "\n".join(summary(rows))
    write_bytes(options.out / "summary.txt", text.encode())
    print(text)
    pictures = [options.out / f"{slug(d, 0)}.png" for d in prompts]
    first = [load_picture(path)[:, -SIZE:] for path in pictures if path.exists()]
    save_picture(options.out / "results.png", contact_sheet(torch.stack(first), columns=2))


def check_tools() -> None:
    try:
        validator_folder()
    except Missing as missing:
        raise SystemExit(f"{missing}; or leave it out with --no-tools") from missing


_JOB = ("model", "refiner", "cfg", "control", "device")


def resume(path: Path, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that an earlier run of the same job left."""
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    if saved["job"] != job:
        raise SystemExit(f"{path} is of other settings: name another folder with --out, or remove it")
    return saved["rows"]


if __name__ == "__main__":
    main()
