"""The stage functions, driven by a prior whose answer is known, and by the demo model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from truth_prior import TruthPrior

from dreamflow_core.apfo import Cancelled, Checkpoint
from dreamflow_core.cameras import orbit
from dreamflow_core.demo import truth
from dreamflow_core.demo.judge import colour_shares
from dreamflow_core.demo.model import MODELS, load_model
from dreamflow_core.generate import generate
from dreamflow_core.mesh import topology
from dreamflow_core.mesh.mesh import BadMesh, Mesh
from dreamflow_core.mesh.prepare import framed, paintable
from dreamflow_core.pipeline import extract_mesh, optimise_mesh, optimise_nerf, turntable
from dreamflow_core.priors.demo import DemoPrior
from dreamflow_core.scenes.mesh import look_at
from dreamflow_core.scenes.nerf import NeRFScene, load_field, save_field
from dreamflow_core.schedule import Schedule, log_uniform
from dreamflow_core.settings.presets import FAMILIES, OPTIMISED, PRESETS, Plan, Planned, make_plan
from dreamflow_core.settings.scenes import HashGridSettings, MeshSettings, NeRFSettings
from dreamflow_core.settings.stages import ExtractSettings, MeshStage, NeRFStage, ScheduleSettings, TurntableSettings
from dreamflow_core.state import BadFile, save_state

SIZE = 24
ORANGE = (0.97, 0.5, 0.04)
GRID = HashGridSettings(levels=4, features=2, entries_log2=12, coarsest=4, finest=32)
FIELD = NeRFSettings(
    grid=GRID,
    hidden=16,
    size=SIZE,
    coarse_size=12,
    coarse_levels=2.0,
    samples=40,
    occupancy=16,
    final_rate=0.2,  # there are few iterations, and SDS's levels do not fall
)
NERF = NeRFStage(scene=FIELD, method="sds")
MESH = MeshStage(scene=MeshSettings("both", size=SIZE, smoothing=4.0, geometry_rate=0.05), method="sds")
EXTRACT = ExtractSettings(faces=1000, texture_size=64, resolution=48)
SCHEDULE = Schedule(log_uniform(1.0, 0.1, 20), 5)
FEW = Schedule(log_uniform(1.0, 0.1, 4), 2)
HELD_OUT = orbit(6, 35.0, 3.0, 40.0)


@pytest.fixture(scope="module")
def prior() -> TruthPrior:
    return TruthPrior("torus", ORANGE, SIZE)


@pytest.fixture(scope="module")
def field(prior: TruthPrior) -> NeRFScene:
    return optimise_nerf(prior, SCHEDULE, NERF, seed=0)


@pytest.fixture(scope="module")
def mesh(field: NeRFScene) -> Mesh:
    return extract_mesh(field, EXTRACT)


def true_view() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of the torus on black, and its alpha."""
    surface = truth.trace("torus", HELD_OUT, 48)
    colour = torch.tensor(ORANGE).expand(6, 3)
    black, mask = torch.zeros(6, 3), torch.zeros_like(surface.alpha)
    return truth.paint(surface.alpha, surface.shade(), mask, colour, colour, black), surface.alpha


def closeness(look) -> tuple[float, float]:
    """(overlap of silhouettes, PSNR in dB) with the torus."""
    view, (colour, alpha) = look(HELD_OUT, 48), true_view()
    one, other = view.alpha > 0.5, alpha > 0.5
    overlap = float((one & other).sum() / (one | other).sum())
    return overlap, float(-10 * (view.colour - colour).square().mean().log10())


def test_the_stages_end_at_what_the_prior_sees(prior: TruthPrior, field: NeRFScene, mesh: Mesh):
    overlap, psnr = closeness(field.view)
    assert overlap > 0.85 and psnr > 20, (overlap, psnr)
    tuned = optimise_mesh(prior, SCHEDULE, mesh, MESH, seed=1)
    better, sharper = closeness(look_at(tuned))
    assert better > max(0.88, overlap) and sharper > psnr, (better, sharper)


def test_an_extracted_mesh_is_what_files_and_viewers_need(mesh: Mesh):
    _, place = topology.weld(mesh.vertices)
    faces = place[mesh.faces]
    assert topology.is_closed(faces) and topology.components(faces).max() == 0
    assert topology.face_volumes(mesh.vertices, mesh.faces).sum() > 0
    assert len(mesh.faces) <= EXTRACT.faces and mesh.unlit
    assert mesh.texture is not None and mesh.texture.shape == (64, 64, 3)


def test_faces_and_texture_follow_the_field(field: NeRFScene, mesh: Mesh):
    view, other = field.view(HELD_OUT, 48), look_at(mesh)(HELD_OUT, 48)
    both = (view.alpha > 0.95) & (other.alpha > 0.95)
    difference = (view.colour - other.colour).abs().mean(1, keepdim=True)
    assert difference[both].mean() < 0.05


def test_a_field_to_start_from_is_kept_as_it_was(prior: TruthPrior, field: NeRFScene):
    before = {name: value.clone() for name, value in field.field.state_dict().items()}
    stage = replace(NERF, scene=replace(FIELD, hidden=8, grid_rate=1e-9, head_rate=1e-9))
    on = optimise_nerf(prior, FEW, stage, seed=5, start=field)
    assert all(torch.equal(value, before[name]) for name, value in field.field.state_dict().items())
    # Occupied space is found anew, with other random points.
    assert (on.view(HELD_OUT, 24).colour - field.view(HELD_OUT, 24).colour).abs().mean() < 2e-3


def test_a_field_file_holds_the_whole_field(tmp_path: Path, field: NeRFScene):
    save_field(tmp_path / "field.safetensors", field)
    again = load_field(tmp_path / "field.safetensors")
    assert again.settings == field.settings
    for name in ("colour", "alpha", "depth", "normal"):
        assert torch.equal(getattr(again.view(HELD_OUT, 24), name), getattr(field.view(HELD_OUT, 24), name))


def test_what_is_not_a_field_file_is_refused(tmp_path: Path, field: NeRFScene):
    path = tmp_path / "field.safetensors"
    with pytest.raises(BadFile, match="no file"):
        load_field(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(BadFile, match="cannot be loaded"):
        load_field(path)
    save_state(path, {"step": 1})
    with pytest.raises(BadFile, match="not a radiance field"):
        load_field(path)
    save_state(path, {"field": {"settings": {"grid": {}, "magic": 1}, "scene": {}}})
    with pytest.raises(BadFile, match="magic"):
        load_field(path)
    other = NeRFScene(replace(FIELD, hidden=8), seed=0)
    other.field.colour_head.out.bias.data.fill_(float("nan"))
    save_field(path, other)
    with pytest.raises(BadFile, match="NaN"):
        load_field(path)


def stopped_and_resumed(run, path: Path):
    """The result of a run that is stopped after 3 iterations and continued."""
    with pytest.raises(Cancelled):
        run(checkpoint=Checkpoint(path, {}), cancelled=iter([False] * 3 + [True]).__next__)
    return run(checkpoint=Checkpoint(path, {}, resume=True))


def test_stopped_stages_continue_to_the_same_result(tmp_path: Path, prior: TruthPrior, mesh: Mesh):
    def nerf(**how) -> NeRFScene:
        return optimise_nerf(prior, FEW, NERF, seed=2, **how)

    def tune(**how) -> Mesh:
        return optimise_mesh(prior, FEW, mesh, MESH, seed=2, **how)

    field, again = nerf(), stopped_and_resumed(nerf, tmp_path / "nerf.safetensors")
    assert torch.equal(field.view(HELD_OUT, 24).colour, again.view(HELD_OUT, 24).colour)
    tuned, again = tune(), stopped_and_resumed(tune, tmp_path / "tune.safetensors")
    assert np.array_equal(tuned.vertices, again.vertices) and np.array_equal(tuned.texture, again.texture)


def test_a_checkpoint_of_another_mesh_is_refused(tmp_path: Path, prior: TruthPrior, mesh: Mesh):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", {}, resume=True)
    optimise_mesh(prior, FEW, mesh, MESH, seed=2, checkpoint=checkpoint)
    other = replace(mesh, vertices=mesh.vertices * np.float32(0.99))
    with pytest.raises(BadFile, match="differs in mesh"):
        optimise_mesh(prior, FEW, other, MESH, seed=2, checkpoint=checkpoint)


def far_cube(**attributes) -> Mesh:
    box = trimesh.creation.box((40.0, 40.0, 40.0))
    return Mesh(box.vertices + np.array([100.0, 0.0, 0.0]), box.faces, **attributes)


def test_any_mesh_can_be_tuned_and_stays_in_its_place(prior: TruthPrior):
    """A bare cube, far away and large."""
    stage = replace(MESH, scene=replace(MESH.scene, optimise="texture"), texture_size=48)
    tuned = optimise_mesh(prior, FEW, far_cube(), stage, seed=0)
    assert tuned.texture is not None and tuned.texture.shape == (48, 48, 3)
    assert np.allclose(tuned.vertices.min(0), (80, -20, -20), atol=1e-4)
    assert np.allclose(tuned.vertices.max(0), (120, 20, 20), atol=1e-4)
    assert len(tuned.faces) == 12


def test_a_mesh_gets_the_texture_it_lacks():
    colours = np.zeros((8, 3))
    colours[:, 1] = np.linspace(0, 1, 8)
    mesh, _ = framed(far_cube(colours=colours))
    painted = paintable(mesh, 64)
    plain, textured = (look_at(m)(HELD_OUT, 48) for m in (mesh, painted))
    inside = (plain.alpha > 0.99).expand(-1, 3, -1, -1)
    assert (plain.colour - textured.colour)[inside].abs().mean() < 0.01
    enlarged = paintable(painted, 128)
    assert enlarged.texture.shape == (128, 128, 3)
    difference = (look_at(enlarged)(HELD_OUT, 48).colour - textured.colour)[inside]
    assert difference.abs().mean() < 0.01
    assert paintable(enlarged, 64) is enlarged and paintable(enlarged) is enlarged


def test_unusable_scenes_are_one_clear_error(field: NeRFScene, prior: TruthPrior):
    empty = NeRFScene(replace(FIELD, blob_density=1e-6), seed=0)
    empty.field.density_head.out.bias.data.fill_(-30.0)
    with pytest.raises(BadMesh, match="the scene is empty"):
        extract_mesh(empty, EXTRACT)
    with pytest.raises(BadMesh, match="nothing in the scene is denser"):
        extract_mesh(field, replace(EXTRACT, threshold=1e9))
    with pytest.raises(BadMesh, match="texture size is 4"):
        extract_mesh(field, replace(EXTRACT, texture_size=4))
    with pytest.raises(BadMesh, match="face budget is 3"):
        extract_mesh(field, replace(EXTRACT, faces=3))
    point = Mesh(np.ones((3, 3)), [[0, 1, 2]])
    with pytest.raises(BadMesh, match="at one point"):
        optimise_mesh(prior, FEW, point, replace(MESH, scene=replace(MESH.scene, optimise="geometry")), seed=0)
    with pytest.raises(BadMesh, match="NaN"):
        Mesh(np.full((3, 3), np.nan), [[0, 1, 2]])


def test_settings_out_of_range_are_named():
    for make, message in (
        (lambda: NeRFStage(method="magic"), "no method 'magic'"),
        (lambda: MeshStage(method="magic"), "no method 'magic'"),
        (lambda: TurntableSettings(views=0), "views is 0"),
        (lambda: TurntableSettings(size=0), "size is 0"),
        (lambda: NeRFSettings(grid_rate=0), "grid_rate is 0"),
        (lambda: NeRFSettings(blob_radius=float("nan")), "blob_radius is nan"),
        (lambda: NeRFSettings(distortion=-1), "distortion is -1"),
        (lambda: MeshSettings(texture_rate=-1), "texture_rate is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_turntable_starts_at_the_front_and_goes_round(field: NeRFScene):
    settings = TurntableSettings(views=4, size=16, elevation=10.0)
    view = turntable(field.view, settings)
    assert torch.equal(view.colour, field.view(orbit(4, 10.0, 3.0, 40.0), 16).colour)


def plan() -> Plan:
    few = ScheduleSettings(0.8, 0.1, levels=2)
    return Plan(Planned(few, NERF), EXTRACT, Planned(few, MESH), Planned(few, MESH))


def test_generate_chains_the_stages(prior: TruthPrior):
    stages = []

    def run(name, function):
        stages.append(name)
        return function()

    made = generate(plan(), {"nerf": prior, "tune": prior, "refine": prior}, seed=3, run=run)
    assert stages == ["nerf", "extract", "tune", "refine"]
    assert isinstance(made, Mesh)
    stages.clear()
    first, second = (generate(plan(), {"nerf": prior, "tune": prior}, seed=3, run=run) for _ in range(2))
    assert stages == ["nerf", "extract", "tune"] * 2
    assert np.array_equal(first.vertices, second.vertices) and np.array_equal(first.texture, second.texture)
    assert not np.array_equal(first.vertices, made.vertices)


def test_generate_checks_every_stage_before_it_starts():
    prior, other = TruthPrior("torus", ORANGE, SIZE), TruthPrior("torus", ORANGE, 2 * SIZE)
    with pytest.raises(ValueError, match="does not fit"):
        generate(plan(), {"nerf": prior, "tune": prior, "refine": other}, seed=0)
    bad = replace(plan(), refine=Planned(ScheduleSettings(levels=0), MESH))
    with pytest.raises(ValueError, match="0 levels"):
        generate(bad, {"nerf": prior, "tune": prior, "refine": prior}, seed=0)
    assert prior.calls == other.calls == 0


def demo_plan(preset):
    return make_plan(preset, FAMILIES["demo"], FAMILIES["demo"], dict.fromkeys(OPTIMISED, 64))


def test_presets_do_more_and_more():
    work = [
        sum(len(p.schedule.build(TruthPrior("cube", ORANGE, 64).sigma_at)) for p in (plan.nerf, plan.tune, plan.refine))
        for plan in map(demo_plan, PRESETS)
    ]
    assert work == sorted(set(work))


@pytest.mark.slow
def test_a_prompt_becomes_its_object():
    """The demo model, a draft with half of the work: a red sphere, in outline and colour."""
    draft = demo_plan("draft")
    shorter = replace(draft.nerf, schedule=replace(draft.nerf.schedule, iterations=2))
    prior = DemoPrior(load_model(MODELS["demo"]), "a red sphere")
    made = look_at(generate(replace(draft, nerf=shorter), {"nerf": prior, "tune": prior}, seed=0))(HELD_OUT, 48)
    solid, true = made.alpha > 0.5, truth.trace("sphere", HELD_OUT, 48).alpha > 0.5
    assert (solid & true).sum() / (solid | true).sum() > 0.85
    shares = [colour_shares(picture)["red"] for picture in made.on((1.0, 1.0, 1.0))]
    assert min(shares) > 0.95
