from __future__ import annotations

import numpy as np
import pytest
import trimesh
from mesh_fields import EXTENT, distances, soft_grid
from scipy.spatial import cKDTree

from dreamflow_core.mesh import topology
from dreamflow_core.mesh import unwrap as unwrapping
from dreamflow_core.mesh.bake import bake, fill, nearest, paint, sample_texture, surface_indices, surface_texels
from dreamflow_core.mesh.extract import extract, simplify
from dreamflow_core.mesh.mesh import BadMesh, Mesh
from dreamflow_core.mesh.unwrap import unwrap, unwrap_at
from dreamflow_core.preparing import listening

SIZE = 256


def colour(points: np.ndarray) -> np.ndarray:
    return 0.5 + 0.45 * np.sin(3 * points + [0, 1, 2])


@pytest.fixture(scope="module")
def closed() -> Mesh:
    return simplify(extract(soft_grid("duck", 48), EXTENT, threshold=50.0), 2000)


@pytest.fixture(scope="module")
def flat(closed: Mesh) -> Mesh:
    return unwrap(closed, SIZE)[0]


def texels_under(uvs: np.ndarray, faces: np.ndarray, size: int) -> np.ndarray:
    """How many triangles cover each texel centre, strictly, (size, size): one triangle at a time."""
    count = np.zeros((size, size), int)
    for a, b, c in uvs[faces].astype(np.float64) * size - 0.5:
        low = np.maximum(np.floor(np.minimum(np.minimum(a, b), c)).astype(int), 0)
        high = np.minimum(np.ceil(np.maximum(np.maximum(a, b), c)).astype(int) + 1, size)
        x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
        sides = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
        inside = np.all([s > 1e-4 for s in sides], axis=0) | np.all([s < -1e-4 for s in sides], axis=0)
        count[low[1] : high[1], low[0] : high[0]] += inside
    return count


def test_charts_do_not_overlap_and_keep_the_surface(closed: Mesh, flat: Mesh):
    assert flat.uvs is not None
    assert flat.uvs.min() > 1 / SIZE and flat.uvs.max() < 1 - 1 / SIZE
    count = texels_under(flat.uvs, flat.faces, 2 * SIZE)
    assert count.max() == 1
    assert (count > 0).mean() > 0.3
    assert np.array_equal(flat.vertices[flat.faces], closed.vertices[closed.faces])
    _, place = topology.weld(flat.vertices)
    assert topology.is_closed(place[flat.faces])


def test_many_faces_show_how_far_they_are(closed: Mesh, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(unwrapping, "_PIECES", 2)
    monkeypatch.setattr(unwrapping, "_MANY_FACES", len(closed.faces))
    told = []
    with listening(lambda *progress: told.append(progress)):
        flat, _ = unwrap(closed, SIZE)
    test_charts_do_not_overlap_and_keep_the_surface(closed, flat)
    assert {what for what, _ in told} == {"cutting the surface into charts"}
    shares = [share for _, share in told]
    assert len(shares) > 2 and shares == sorted(shares) and shares[-1] == 1
    assert caplog.messages == [f"unwrapping {len(closed.faces)} faces, which takes about 1 min"]


def test_every_vertex_knows_the_one_it_was(closed: Mesh):
    coloured = Mesh(closed.vertices, closed.faces, colours=colour(closed.vertices))
    flat, source = unwrap(coloured, SIZE)
    assert np.array_equal(flat.vertices, closed.vertices[source])
    assert np.abs(flat.colours - colour(flat.vertices)).max() < 1e-6


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_unwrapping_does_not_depend_on_the_size_of_the_mesh(closed: Mesh, scale: float):
    flat, _ = unwrap(Mesh(closed.vertices * scale, closed.faces), SIZE)
    assert flat.uvs is not None
    in_space = np.pad(flat.uvs, ((0, 0), (0, 1)))
    assert (topology.face_areas(in_space, flat.faces) > 0).all()


def test_charts_do_not_touch(flat: Mesh):
    assert flat.uvs is not None
    _, chart = np.unique(topology.components(flat.faces), return_inverse=True)
    owner = np.full((SIZE, SIZE), -1)
    texels = surface_texels(flat, SIZE)
    owner.reshape(-1)[texels.index[texels.inside]] = chart[texels.face[texels.inside]]
    for axis in (0, 1):
        here, next_to = owner.take(range(SIZE - 1), axis), owner.take(range(1, SIZE), axis)
        assert ((here == next_to) | (here < 0) | (next_to < 0)).all()


def rod(rings: int) -> trimesh.Trimesh:
    """A thin tube of 24 sides, cut across into rings."""
    turn, height = np.meshgrid(np.arange(24) / 12 * np.pi, np.linspace(-2, 2, rings + 1))
    places = np.stack([0.02 * np.cos(turn), 0.02 * np.sin(turn), height], axis=-1).reshape(-1, 3)
    number = np.arange(len(places)).reshape(turn.shape)
    corners = [np.roll(number[up : rings + up], -right, axis=1) for up, right in ((0, 0), (0, 1), (1, 1), (1, 0))]
    quads = np.stack(corners, axis=-1).reshape(-1, 4)
    return trimesh.Trimesh(places, np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]]), process=False)


def shape(name: str) -> Mesh:
    rng = np.random.default_rng(0)
    balls = [trimesh.creation.icosphere(1, 0.1).apply_translation(place) for place in rng.normal(size=(30, 3))]
    made = {
        "thin": lambda: trimesh.creation.cylinder(0.02, 4, sections=24),
        "rings": lambda: rod(60),
        "three rings": lambda: rod(3),
        "long": lambda: trimesh.creation.box((8, 0.01, 0.01)).subdivide().subdivide(),
        "flat": lambda: trimesh.creation.box((2, 2, 0.001)).subdivide(),
        "round": lambda: trimesh.creation.icosphere(2),
        "many parts": lambda: trimesh.util.concatenate(balls),
    }[name]()
    return Mesh(made.vertices, made.faces)


@pytest.mark.parametrize("padding", [1, 2, 4])
@pytest.mark.parametrize("name", ["thin", "rings", "three rings", "long", "flat", "round", "many parts"])
def test_the_gap_between_charts_is_kept(name: str, padding: int):
    size, step = 512, 1 / 4
    mesh = shape(name)
    flat, _ = unwrap(mesh, size, padding)
    texels = flat.uvs.astype(np.float64) * size
    assert padding <= texels.min() and texels.max() <= size - padding
    assert np.array_equal(flat.vertices[flat.faces], mesh.vertices[mesh.faces])
    assert texels_under(flat.uvs, flat.faces, size).max() == 1
    # Points all along the charts' outlines, and the chart of each.
    _, chart = np.unique(topology.components(flat.faces), return_inverse=True)
    assert chart.max() > 3
    edges = np.stack([flat.faces, np.roll(flat.faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    _, first, uses = np.unique(np.sort(edges, axis=1), axis=0, return_index=True, return_counts=True)
    begin, end = np.moveaxis(texels[edges[first[uses == 1]]], 1, 0)
    count = np.ceil(np.linalg.norm(end - begin, axis=1) / step).astype(int)
    edge = np.repeat(np.arange(len(count)), count)
    part = (np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)) / count[edge]
    points = begin[edge] + part[:, None] * (end - begin)[edge]
    owner = np.repeat(chart, 3)[first[uses == 1]][edge]
    for number in range(chart.max() + 1):
        own, others = points[owner == number], points[owner != number]
        near = ((others > own.min(0) - padding - 1) & (others < own.max(0) + padding + 1)).all(1)
        if near.any():
            nearest, _ = cKDTree(own).query(others[near], distance_upper_bound=2 * padding + 2)
            assert nearest.min() > padding + step


@pytest.mark.parametrize(("name", "least"), [("rings", 0.4), ("three rings", 0.2), ("thin", 0.04), ("long", 0.08)])
def test_long_charts_use_their_atlas(name: str, least: float):
    """Cut where there are edges to cut along, else across. Along one side they would fill 0.03 of it."""
    flat, _ = unwrap(shape(name), 512)
    assert (texels_under(flat.uvs, flat.faces, 512) > 0).mean() > least


def density(mesh: Mesh, size: int) -> np.ndarray:
    """Texels per unit of each face, (F,)."""
    in_atlas = topology.face_areas(np.pad(mesh.uvs * size, ((0, 0), (0, 1))), mesh.faces)
    return np.sqrt(in_atlas / topology.face_areas(mesh.vertices, mesh.faces))


def test_faces_get_the_texels_that_are_asked_for():
    """A large square that needs 80 texels a side, and a small one that needs 400."""
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    mesh = Mesh(np.concatenate([10 * square, 0.1 * square + [20, 0, 0]]), np.concatenate([triangles, triangles + 4]))
    asked = np.repeat([8.0, 4000.0], 2)
    flat, source, size, share = unwrap_at(mesh, asked, [256, 512, 1024, 2048])
    assert np.array_equal(flat.vertices, mesh.vertices[source])
    # What room is left goes to the large one.
    large, small = density(flat, size).reshape(2, 2).mean(axis=1)
    assert size == 512 and small == pytest.approx(4000, rel=0.01) and 8 <= large < 11 and share >= 1
    flat, _, size, share = unwrap_at(mesh, asked, [2048])
    large, small = density(flat, size).reshape(2, 2).mean(axis=1)
    assert small == pytest.approx(4000, rel=0.01) and large > 80 and share >= 1
    # Of 480 texels side by side the atlas has 124, and both get as large a share of theirs.
    flat, _, size, share = unwrap_at(mesh, asked, [64, 128])
    assert size == 128 and 0.2 < share < 124 / 480
    assert density(flat, size) / asked == pytest.approx(share, rel=0.1)


def test_charts_that_are_many_fill_the_atlas_they_were_asked_for():
    flat, _ = unwrap(shape("many parts"), SIZE)
    assert (texels_under(flat.uvs, flat.faces, SIZE) > 0).mean() > 0.2
    with pytest.raises(BadMesh, match=r"into \d+ charts, too many for a texture of 32 x 32"):
        unwrap(shape("many parts"), 32)


def test_faces_without_an_area_do_not_reach_across_the_atlas(closed: Mesh):
    """Slivers between a corner and the middle of the edge across, and faces that are points."""
    middles = closed.vertices[closed.faces[:50, 1:]].mean(axis=1)
    number = len(closed.vertices) + np.arange(50)
    slivers = np.stack([closed.faces[:50, 1], number, closed.faces[:50, 2]], axis=-1)
    points = np.repeat(closed.faces[:50, :1], 3, axis=1)
    halves = [closed.faces[:50, [0, 1]], closed.faces[:50, [2, 0]]]
    faces = [np.c_[halves[0], number], np.c_[halves[1], number], slivers, points, closed.faces[50:]]
    mesh = Mesh(np.concatenate([closed.vertices, middles]), np.concatenate(faces))
    corners = mesh.vertices[mesh.faces]
    flat, _ = unwrap(mesh, SIZE)
    assert flat.uvs.min() > 1 / SIZE and flat.uvs.max() < 1 - 1 / SIZE
    in_atlas, in_space = (np.linalg.norm(at - np.roll(at, 1, axis=1), axis=2) for at in (flat.uvs[flat.faces], corners))
    assert in_atlas.max() < 0.1
    assert (in_atlas[in_space == 0] == 0).all()
    assert np.array_equal(flat.vertices[flat.faces], corners)


def test_texels_lie_on_the_surface(flat: Mesh):
    texels = surface_texels(flat, SIZE)
    assert len(np.unique(texels.index)) == len(texels.index)
    assert texels.weights.min() > -1e-5 and np.allclose(texels.weights.sum(1), 1, atol=1e-5)
    points = texels.interpolate(flat.vertices, flat.faces)
    off = np.abs(distances("duck", points))
    assert off.mean() < 0.003 and off.max() < 0.03
    # Texels in a face are the points of the face at their own UVs; no texel in a face is left out.
    row, column = np.divmod(texels.index, SIZE)
    centres = (np.stack([column, row], axis=-1) + 0.5) / SIZE
    uvs = texels.interpolate(flat.uvs, flat.faces)
    assert np.abs(uvs - centres)[texels.inside].max() < 1e-5
    assert np.linalg.norm(uvs - centres, axis=1).max() < 1.5 / SIZE
    covered = texels_under(flat.uvs, flat.faces, SIZE).reshape(-1) > 0
    assert set(np.flatnonzero(covered)) <= set(texels.index[texels.inside])


def test_a_baked_texture_gives_the_colours_back_also_at_seams(flat: Mesh):
    baked = bake(flat, SIZE, lambda points, _: colour(points))
    rng = np.random.default_rng(0)
    face = rng.integers(len(flat.faces), size=20000)
    weights = rng.dirichlet((1, 1, 1), 20000)
    # A third of the points on edges, a third at corners: this is where seams are.
    weights[:7000, 0] = 0
    weights[:7000] /= weights[:7000].sum(1, keepdims=True)
    weights[7000:14000] = np.eye(3)[rng.integers(3, size=7000)]
    points = np.einsum("pk,pkc->pc", weights, flat.vertices[flat.faces[face]])
    uvs = np.einsum("pk,pkc->pc", weights, flat.uvs[flat.faces[face]])
    # One texel is 2.2 / SIZE wide at the most, and the colour's slope is 1.35.
    error = np.abs(sample_texture(baked.texture, uvs) - colour(points)).max(1)
    assert np.median(error) < 1e-3
    assert error.max() < 1.35 * 2.2 / SIZE * 1.5


def test_padding_reaches_everywhere(flat: Mesh):
    texels = surface_texels(flat, SIZE)
    one = np.array([0.2, 0.4, 0.6])
    assert np.abs(fill(texels, np.tile(one, (len(texels.index), 1))) - one).max() < 1e-6


def loose(uvs: np.ndarray) -> Mesh:
    """Triangles (F, 3, 2) that share no vertices, anywhere in space."""
    places = np.random.default_rng(1).random((uvs.size // 2, 3))
    return Mesh(places, np.arange(len(places)).reshape(-1, 3), uvs=uvs.reshape(-1, 2))


def uvs_of(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    any_place = rng.random((12, 3, 2))
    return {
        "overlapping": lambda: any_place,
        "beyond the square": lambda: 4 * any_place - 1.5,
        "corners on texel centres": lambda: (np.floor(any_place * 24) + 0.5) / 24,
        "smaller than a texel": lambda: any_place[:, :1] + rng.random((12, 3, 2)) / 60,
        "slivers and points": lambda: np.stack(
            [any_place[:, 0], any_place[:, 0], any_place[:, 1] * (np.arange(12) % 2)[:, None]], 1
        ),
    }[name]()


def barycentric(triangle: np.ndarray, point: np.ndarray) -> np.ndarray:
    """By solving for them; never inside a triangle without an area."""
    system = np.vstack([triangle.T, np.ones(3)])
    return np.linalg.solve(system, [*point, 1]) if abs(np.linalg.det(system)) > 1e-9 else np.full(3, -1.0)


def to_edge(begin: np.ndarray, end: np.ndarray, point: np.ndarray) -> float:
    """Distance of a point from a line between two."""
    length = ((end - begin) ** 2).sum()
    along = np.clip((point - begin) @ (end - begin) / length, 0, 1) if length > 0 else 0.0
    return float(np.linalg.norm(begin + along * (end - begin) - point))


@pytest.mark.parametrize(
    "name",
    ["overlapping", "beyond the square", "corners on texel centres", "smaller than a texel", "slivers and points"],
)
def test_surface_texels_are_those_found_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dreamflow_core.mesh.bake._TOGETHER", 50)
    monkeypatch.setattr("dreamflow_core.mesh.bake._CHUNK", 30)
    size, mesh = 24, loose(uvs_of(name))
    triangles = mesh.uvs.astype(np.float64)[mesh.faces] * size - 0.5
    inside, rim = {}, {}
    for index in range(size * size):
        point = np.array([index % size, index // size], float)
        faces = [face for face, corners in enumerate(triangles) if barycentric(corners, point).min() >= -1e-6]
        edges = [
            (a, b) for corners in triangles for a, b in zip(corners, np.roll(corners, -1, axis=0)) if (a != b).any()
        ]
        distance = min(to_edge(*edge, point) for edge in edges)
        if faces:
            inside[index] = faces[0]
        elif distance < 1.5:
            rim[index] = distance
    texels = surface_texels(mesh, size)
    assert texels.index.tolist() == [*inside, *rim] == surface_indices(mesh, size).tolist()
    assert texels.face[texels.inside].tolist() == list(inside.values())
    centres = np.stack([texels.index % size, texels.index // size], axis=-1)
    shown = texels.interpolate(mesh.uvs.astype(np.float64), mesh.faces) * size - 0.5
    assert np.abs(shown - centres)[texels.inside].max(initial=0) < 1e-3
    off = np.linalg.norm(shown - centres, axis=1)[~texels.inside]
    np.testing.assert_allclose(off, list(rim.values()), atol=1e-3)
    colours = texels.interpolate(mesh.vertices, mesh.faces)
    painted = paint(mesh, size, lambda some: some.interpolate(mesh.vertices, mesh.faces))
    np.testing.assert_array_equal(painted, fill(texels, colours))
    np.testing.assert_array_equal(painted.reshape(-1, 3)[texels.index], np.clip(colours, 0, 1))


def test_the_nearest_texel_is_the_nearest():
    chosen = np.random.default_rng(0).random((17, 23)) < 0.05
    places, all_texels = np.argwhere(chosen), np.indices(chosen.shape).reshape(2, -1).T
    index = nearest(chosen)
    assert index.dtype == np.int32 and chosen.reshape(-1)[index].all()
    distance = np.linalg.norm(all_texels - np.stack(np.divmod(index, 23), axis=-1), axis=1)
    least = np.linalg.norm(all_texels[:, None] - places, axis=2).min(axis=1)
    np.testing.assert_allclose(distance, least)


def test_sampling_reads_texel_centres_and_the_middle_between_them():
    texture = np.random.default_rng(0).random((4, 6, 3)).astype(np.float32)
    assert sample_texture(texture, np.array([[1.5 / 6, 2.5 / 4]])) == pytest.approx(texture[2, 1][None])
    assert sample_texture(texture, np.array([[2 / 6, 2.5 / 4]])) == pytest.approx(texture[2, 1:3].mean(0)[None])
    assert sample_texture(texture, np.array([[1.5 / 6 + 1, 2.5 / 4 - 1]]), (True, True)) == pytest.approx(
        texture[2, 1][None]
    )


def test_bad_settings_are_one_clear_error(closed: Mesh, flat: Mesh):
    with pytest.raises(BadMesh, match="texture size is 8"):
        unwrap(closed, 8)
    with pytest.raises(BadMesh, match="no face of the mesh has an area"):
        unwrap(Mesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]), SIZE)
    with pytest.raises(BadMesh, match="UVs cover nothing"):
        surface_texels(Mesh(flat.vertices, flat.faces, uvs=np.zeros_like(flat.uvs)), SIZE)
    with pytest.raises(BadMesh, match="no UVs"):
        bake(closed, SIZE, lambda points, _: colour(points))
    with pytest.raises(BadMesh, match="texture contain NaN"):
        bake(flat, SIZE, lambda points, _: points * np.nan)
