from __future__ import annotations

import math

import numpy as np
import pytest
from mesh_fields import EXTENT, distance_grid, distances, soft_grid
from scipy.ndimage import gaussian_filter

from dreamflow_core.demo.shapes import SHAPES
from dreamflow_core.mesh import topology
from dreamflow_core.mesh.extract import extract, sample_grid, simplify
from dreamflow_core.mesh.inside import least_optical_depth, with_solid_inside
from dreamflow_core.mesh.mesh import BadMesh, Mesh
from dreamflow_core.mesh.repair import pull_apart
from dreamflow_core.mesh.threshold import automatic_threshold


def volume(mesh: Mesh) -> float:
    return float(topology.face_volumes(mesh.vertices, mesh.faces).sum())


def check_closed(mesh: Mesh) -> None:
    """Watertight, outward, one component; by counting edges here rather than by the code's own count."""
    uses: dict[tuple[int, int], int] = {}
    for a, b, c in mesh.faces.tolist():
        for edge in ((a, b), (b, c), (c, a)):
            uses[edge] = uses.get(edge, 0) + 1
    assert set(uses.values()) == {1} and all((b, a) in uses for a, b in uses)
    assert volume(mesh) > 0
    assert topology.components(mesh.faces).max() == 0
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)


def test_sphere_has_the_area_and_volume_of_a_sphere():
    mesh = extract(soft_grid("sphere", 64), EXTENT, threshold=50.0)
    check_closed(mesh)
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.75**3, rel=5e-3)
    assert topology.face_areas(mesh.vertices, mesh.faces).sum() == pytest.approx(4 * math.pi * 0.75**2, rel=5e-3)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.75).max() < 3e-3
    outward = (topology.vertex_normals(mesh.vertices, mesh.faces) * mesh.vertices).sum(1) / 0.75
    assert outward.min() > 0.99


@pytest.mark.parametrize(("shape", "characteristic"), [("sphere", 2), ("torus", 0), ("car", 2), ("rabbit", 2)])
def test_topology_is_the_shape_s_before_and_after_simplifying(shape: str, characteristic: int):
    mesh = extract(soft_grid(shape, 56), EXTENT, threshold=50.0)
    check_closed(mesh)
    assert topology.euler_characteristic(mesh.faces) == characteristic
    for budget in (3000, 400):
        simple = simplify(mesh, budget)
        check_closed(simple)
        assert 0.9 * budget <= len(simple.faces) <= budget
        assert topology.euler_characteristic(simple.faces) == characteristic
        assert volume(simple) == pytest.approx(volume(mesh), rel=0.04)
        assert np.abs(distances(shape, simple.vertices)).mean() < 0.02


def two_balls(neck: float) -> np.ndarray:
    """Balls of density 20 above one another, and between them a neck of another density."""

    def density(points: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        distance = np.sqrt(x**2 + (np.abs(y) - 0.45) ** 2 + z**2) - 0.35
        inside = 1 / (1 + np.exp(np.clip(distance / 0.02, -60, 60)))
        return 20 * inside + neck * (1 - inside) * (np.abs(y) < 0.45) * (np.hypot(x, z) < 0.15)

    return sample_grid(density, 64, EXTENT)


def test_automatic_threshold_does_not_cut_a_soft_neck():
    """A duck lost its head: its neck was denser than a third of the threshold, and less dense than it."""
    mesh = extract(two_balls(neck=4.0), EXTENT)
    check_closed(mesh)
    assert mesh.vertices[:, 1].min() < -0.7 and mesh.vertices[:, 1].max() > 0.7
    assert volume(mesh) == pytest.approx(2 * 4 / 3 * math.pi * 0.35**3, rel=0.3)


def test_automatic_threshold_is_not_lowered_where_that_joins_nothing():
    assert automatic_threshold(two_balls(neck=0.0), EXTENT) == automatic_threshold(two_balls(neck=0.5), EXTENT)
    assert automatic_threshold(two_balls(neck=0.0), EXTENT) > 4.0


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("scale", "softness", "least"),
    # Fog; fields at about the density that training settles at; dense fields, which are seen further out.
    [(0.2, 0.005, 0.98), (2, 0.01, 0.97), (10, 0.02, 0.95), (50, 0.01, 0.9), (200, 0.005, 0.93), (3000, 0.004, 0.8)],
)
def test_automatic_threshold_finds_the_shape(shape: str, scale: float, softness: float, least: float):
    grid = soft_grid(shape, 48, scale, softness)
    inside = distance_grid(shape, 48) < 0
    assert overlap(grid > automatic_threshold(grid, EXTENT), inside) > least


@pytest.mark.parametrize(("scale", "softness"), [(100, 0.05), (1000, 0.02), (1000, 0.05), (10000, 0.03)])
def test_automatic_threshold_of_a_dense_field_lies_where_light_stops(scale: float, softness: float):
    threshold = automatic_threshold(soft_grid("sphere", 64, scale, softness), EXTENT)
    # Along the normal: density is scale / (1 + e^(d / softness)), its integral from outside to d is
    # scale * softness * log(1 + e^(-d / softness)).
    distance = softness * math.log(scale / threshold - 1)
    light = math.exp(-scale * softness * math.log1p(math.exp(-distance / softness)))
    assert 0.2 < light < 0.9


def test_automatic_threshold_scales_with_the_unit_of_length():
    grid = soft_grid("duck", 48)
    assert automatic_threshold(grid / 10, 10 * EXTENT) == pytest.approx(automatic_threshold(grid, EXTENT) / 10)


def test_interior_and_dust_do_not_matter():
    grid = soft_grid("sphere", 64, 200.0)
    radius = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-EXTENT, EXTENT, 64)] * 3, indexing="ij")), axis=0)
    grid[radius < 0.5] = 0
    grid[2:4, 2:4, 2:4] = 200
    mesh = extract(grid, EXTENT)
    check_closed(mesh)
    assert topology.euler_characteristic(mesh.faces) == 2
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.75**3, rel=0.2)


def test_optical_depth_is_the_integral_along_the_clearest_way():
    """Against a walk from the node outward, cell by cell in float64."""
    density = np.random.default_rng(0).uniform(0, 5, (9, 9, 9)) ** 2
    depth = least_optical_depth(density.astype(np.float32), 2.0, narrow=0.0)

    def walk(node: tuple[int, ...], step: tuple[int, ...]) -> float:
        total, here = 0.0, np.array(node)
        while ((here + step >= 0) & (here + step < 9)).all():
            total += (density[tuple(here)] + density[tuple(here + step)]) / 2 * np.linalg.norm(step) * 0.5
            here = here + step
        # A line that enters through a side does so half a step before its first node.
        axis = next(i for i, s in enumerate(step) if s)
        entered_at_its_face = here[axis] == (8 if step[axis] > 0 else 0)
        return total + (0.0 if entered_at_its_face else density[tuple(here)] * np.linalg.norm(step) * 0.25)

    steps = [step for step in np.ndindex(3, 3, 3) if step != (1, 1, 1)]
    for node in [(4, 4, 4), (1, 6, 3), (0, 5, 8), (7, 7, 2)]:
        expected = min(walk(node, tuple(s - 1 for s in step)) for step in steps)
        assert depth[node] == pytest.approx(expected, rel=1e-5)


def ball_with_haze(from_height: float) -> np.ndarray:
    """A dense ball in which a shaft along z, above some height, is of haze: opaque all through, and never dense."""

    def density(points: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        shaft = (np.hypot(x, y) < 0.2) & (z > from_height)
        return np.where(np.linalg.norm(points, axis=1) < 0.75, np.where(shaft, 4.0, 30.0), 0.0)

    return sample_grid(density, 64, EXTENT)


def test_what_only_haze_covers_is_solid():
    """A star had a cave and a car was seen through, where pictures of their fields showed walls."""
    tunnelled, caved = ball_with_haze(-1.0), ball_with_haze(0.0)
    assert topology.euler_characteristic(extract(tunnelled, EXTENT, threshold=10.0).faces) == 0
    for grid in (tunnelled, caved):
        mesh = extract(grid, EXTENT)
        check_closed(mesh)
        assert topology.euler_characteristic(mesh.faces) == 2
        over_the_shaft = mesh.vertices[(np.hypot(*mesh.vertices.T[:2]) < 0.15) & (mesh.vertices[:, 2] > -0.3)]
        # Half of the light has stopped after ln(2) / 4 of haze.
        assert over_the_shaft[:, 2].min() == pytest.approx(0.75 - math.log(2) / 4, abs=0.06)


@pytest.mark.parametrize(("width", "characteristic"), [(0.08, 2), (0.3, 0)])
def test_gaps_are_closed_and_holes_stay(width: float, characteristic: int):
    """A cube whose field was opaque was seen through where light fell through a gap into a hollow behind it."""

    def density(points: np.ndarray) -> np.ndarray:
        radius, from_axis = np.linalg.norm(points, axis=1), np.abs(points[:, :2]).max(1)
        return 30.0 * ((radius < 0.75) & (radius > 0.4) & (from_axis > width / 2))

    mesh = extract(sample_grid(density, 96, EXTENT), EXTENT)
    check_closed(mesh)
    assert topology.euler_characteristic(mesh.faces) == characteristic


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "softness"), [(10, 0.02), (100, 0.05), (1000, 0.02)])
def test_outlines_stay_where_the_threshold_puts_them(shape: str, scale: float, softness: float):
    # Fine enough for the fall-off: a coarser grid takes up to a node more of a steep one.
    grid = soft_grid(shape, 96, scale, softness)
    threshold = automatic_threshold(grid, EXTENT)
    assert overlap(with_solid_inside(grid, EXTENT, threshold) > threshold, grid > threshold) > 0.99


def test_an_open_bowl_stays_open():
    def density(points: np.ndarray) -> np.ndarray:
        radius = np.linalg.norm(points, axis=1)
        return 30.0 * ((radius > 0.5) & (radius < 0.75) & (points[:, 1] < 0.2))

    grid = sample_grid(density, 64, EXTENT)
    assert volume(extract(grid, EXTENT)) == pytest.approx(volume(extract(grid, EXTENT, threshold=15.0)), rel=0.02)


def test_a_field_that_touches_the_border_is_closed_there():
    full = np.full((24, 24, 24), 30.0)
    slanted = sample_grid(lambda points: 40.0 * (points.sum(1) > 0.3), 24, 1.0)
    for grid in (full, slanted):
        for threshold in (None, 10.0):
            mesh = extract(grid, 1.0, threshold)
            check_closed(mesh)
            assert np.abs(mesh.vertices).max() <= 1.0
    assert volume(extract(full, 1.0)) == pytest.approx(8, rel=0.3)


def test_values_equal_to_the_threshold_do_not_tear_the_surface():
    steps = np.round(gaussian_filter(np.random.default_rng(0).standard_normal((32, 32, 32)), 2) * 20) + 5
    check_closed(extract(np.clip(steps, 0, None), 1.0, threshold=5.0))


@pytest.mark.parametrize("seed", range(3))
def test_rough_surfaces_stay_closed_within_the_budget(seed: int):
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((40, 40, 40)), 1.5)
    mesh = extract(np.exp(8 * noise), 1.0, threshold=2.0)
    for part in (0.5, 0.2, 0.05):
        budget = int(part * len(mesh.faces))
        simple = simplify(mesh, budget)
        check_closed(simple)
        assert 0.5 * budget <= len(simple.faces) <= budget


def test_pull_apart_joins_two_tetrahedra_that_share_an_edge():
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [-1, 0, 0], [-1, -1, 0]], np.float32)

    def tetrahedron(a: int, b: int, c: int, d: int) -> list[list[int]]:
        faces = np.array([[a, b, c], [a, c, d], [a, d, b], [b, d, c]])
        inward = topology.face_volumes(vertices, faces).sum() < 0
        return (faces[:, ::-1] if inward else faces).tolist()

    faces = np.array(tetrahedron(0, 1, 2, 3) + tetrahedron(0, 1, 4, 5))
    assert not topology.is_closed(faces)
    mesh = Mesh(*pull_apart(vertices, faces))
    check_closed(mesh)
    assert volume(mesh) == pytest.approx(2 / 6, rel=0.1)


def test_welding_a_split_mesh_gives_its_topology_back():
    mesh = extract(soft_grid("torus", 32), EXTENT)
    split = np.arange(mesh.faces.size).reshape(-1, 3)
    vertices = mesh.vertices[mesh.faces.reshape(-1)]
    first, place = topology.weld(vertices)
    assert len(first) == len(mesh.vertices)
    assert topology.is_closed(place[split]) and topology.euler_characteristic(place[split]) == 0
    smooth = topology.vertex_normals(mesh.vertices, mesh.faces)[mesh.faces.reshape(-1)]
    assert np.abs(topology.vertex_normals(vertices, split) - smooth).max() < 1e-6


@pytest.mark.parametrize(
    ("grid", "extent", "threshold", "words"),
    [
        (np.zeros((8, 8, 8)), 1.0, None, "the scene is empty"),
        (np.full((8, 8, 8), 1e-4), 1.0, None, "the scene is empty"),
        (np.ones((8, 8, 8)), 1.0, 2.0, "lower the threshold"),
        (np.ones((8, 8, 8)), 1.0, -1.0, "threshold is -1.0"),
        (np.ones((8, 8, 8)), 1.0, math.nan, "threshold is nan"),
        (np.full((8, 8, 8), np.nan), 1.0, None, "NaN"),
        (-np.ones((8, 8, 8)), 1.0, None, "negative"),
        (np.ones((8, 8, 7)), 1.0, None, "must be a cube"),
        (np.ones((8, 8, 8)), 0.0, None, "extent is 0.0"),
    ],
)
def test_bad_fields_are_one_clear_error(grid: np.ndarray, extent: float, threshold: float | None, words: str):
    with pytest.raises(BadMesh, match=words):
        extract(grid, extent, threshold)


def test_bad_meshes_are_one_clear_error():
    corners, face = np.eye(3), np.array([[0, 1, 2]])
    with pytest.raises(BadMesh, match="no faces"):
        Mesh(corners, np.zeros((0, 3)))
    with pytest.raises(BadMesh, match="vertices contain NaN"):
        Mesh(corners * np.nan, face)
    with pytest.raises(BadMesh, match="3 vertices but its faces index 0 to 3"):
        Mesh(corners, np.array([[0, 1, 3]]))
    with pytest.raises(BadMesh, match=r"uvs have shape \(2, 2\), not \(3, 2\)"):
        Mesh(corners, face, uvs=np.zeros((2, 2)))
    with pytest.raises(BadMesh, match="texture but no UVs"):
        Mesh(corners, face, texture=np.zeros((4, 4, 3)))
    with pytest.raises(BadMesh, match="face budget is 3"):
        simplify(Mesh(corners, face), 3)
