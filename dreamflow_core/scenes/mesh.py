"""The mesh scene: a texture, the vertices, or both, rasterised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..mesh import topology
from ..mesh.bake import nearest, resized, surface_indices
from ..mesh.colours import to_display, to_linear
from ..mesh.mesh import BadMesh, Ints, Mesh
from ..mesh.normal_map import bend, to_normal_map, to_slopes, vertex_tangents
from ..mesh.precondition import Preconditioner
from ..mesh.prepare import BARE
from ..preparing import track
from ..prior import Look
from ..render import texture
from ..render.raster import Fragments, footprint, interpolate, rasterize, to_clip
from ..render.silhouette import antialias, find_edges
from ..settings.cameras import ViewRange
from ..settings.scenes import MeshSettings
from ..state import make_generator
from ..views import View
from .drift import Blocks, Drift, six_ways
from .scene import ObjectRender, Render

_LIGHT = (0.3, 0.8, 0.55)
"""Direction towards the light in world axes: from above, the front and a little from +X."""
_AMBIENT = 0.45
"""Share of the light that comes from everywhere. Light and share are the demo domain's."""
_STEEPEST = 2.0
"""Most that a normal map under optimisation may slope either way: 63 degrees."""
_SURVEY = 8
"""Batches of views from which it is found how much of a texel is seen."""


class MeshScene:
    """A mesh as a `Scene`.

    The colours of an unlit mesh are light times albedo, as the prior paints them: they are shown as they
    are. Those of any other mesh, and the grey of one without colours, are shaded by a light that is fixed in
    the world. The texture and the light are multiplied as displayed (sRGB).

    Texels are stored as they are and put back into [0, 1], and near their first mean colour if the settings
    ask for it, after every step (projected descent). Logits
    would make texels slower the nearer they are to 0 or 1, and could not start at either. A normal map is
    held as slopes, bounded likewise. Texels between the charts of an atlas copy the nearest one inside
    (`painted_texels`).

    Vertices at one place are one vertex here, so that texture seams neither open nor look like boundaries;
    texture coordinates keep faces of their own, and so do normals where the mesh's have hard edges.

    `begin` is called before each iteration and tells how far the run is.

    Memory: a render keeps, until its backward pass and at float32, about 0.15 kB for each pixel that the
    mesh covers, over all views, if only the texture is optimised and 0.5 kB otherwise; and about 100 bytes a
    texel with Adam's.

    Args:
        mesh: to start from. Texture and normal map need UVs and a texture; geometry alone shows whatever
            colours there are. A new normal map starts flat and has the texture's size.
        settings: what is optimised and how.
        views: where cameras are sampled from.
        seed: of the backgrounds.
        device: of the parameters and renders.

    Raises:
        BadMesh: the mesh lacks what the settings need, or reaches beyond the cameras.
    """

    def __init__(
        self,
        mesh: Mesh,
        settings: MeshSettings | None = None,
        views: ViewRange | None = None,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.settings, self.views = settings or MeshSettings(), views or ViewRange()
        self.device = torch.device(device)
        self._check(mesh)
        # A texture that is optimised is in theta, and large ones had better not be kept twice.
        self._start = replace(mesh, texture=None) if "texture" in self.settings.rates() else mesh
        first, self._place = topology.weld(mesh.vertices)
        welded = self._place[mesh.faces]
        self.faces, self.uv_faces = self._tensor(welded), self._tensor(mesh.faces)
        bent = topology.bent_alike(mesh.vertices, mesh.normals)
        self.normal_faces, self.normal_count = self._tensor(bent[mesh.faces]), int(bent.max()) + 1
        self.uvs, self.colours = self._optional(mesh.uvs), self._optional(mesh.colours)
        self.edges = find_edges(self.faces)
        self.repeats = mesh.repeats
        self._lit = not mesh.unlit or (mesh.texture is None and mesh.colours is None)
        self.fixed_vertices = self._tensor(mesh.vertices[first])
        self.theta: dict[str, Tensor] = {}
        rates = self.settings.rates()
        self._take_texels(mesh)
        if "vertices" in rates:
            self.neighbours = neighbours(self.faces)
            self.preconditioner = Preconditioner(welded, len(first), self.settings.smoothing)
            self.theta["vertices"] = self.preconditioner.parameters(self.fixed_vertices)
        self.generator = make_generator(seed, "mesh")
        self.optimiser: torch.optim.Optimizer = self._make_optimiser()
        self._drift: Drift | None = None
        if self._blocks is not None:
            prominence = self._find_prominence(self._blocks, make_generator(seed, "prominence"))
            texels, most = self.theta["texture"].detach(), self.settings.colour_drift
            self._drift = Drift(self._blocks, prominence, texels, most)

    def _check(self, mesh: Mesh) -> None:
        if self.settings.needs_atlas and mesh.uvs is None:
            raise BadMesh("the mesh has no UVs, which its texture needs: unwrap it, then bake a texture")
        if self.settings.needs_atlas and mesh.texture is None:
            raise BadMesh("the mesh has no texture to optimise: bake one, of a plain colour if there is nothing else")
        if "normal_map" in self.settings.rates() and self.settings.look == "colour" and mesh.unlit:
            raise BadMesh(
                "the light is in the mesh's colours, in which a normal map does not show: "
                "set geometry_look to 'normal', or use a mesh that is lit"
            )
        used = mesh.vertices[np.unique(mesh.faces)]
        reach, nearest = float(np.linalg.norm(used, axis=1).max()), self.views.radius[0]
        if reach >= nearest:
            raise BadMesh(
                f"the mesh reaches {reach:.3g} from the origin and cameras are at {nearest:.3g}: "
                "move and scale it into the unit sphere"
            )

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _optional(self, values: np.ndarray | None) -> Tensor | None:
        return None if values is None else self._tensor(values)

    def _slopes(self, mesh: Mesh) -> Tensor | None:
        """Of its normal map, (H, W, 2); of the texture's size, and flat where there is none, if to be optimised."""
        normal_map = mesh.normal_map
        if "normal_map" in self.settings.rates() and mesh.texture is not None:
            height, width = mesh.texture.shape[:2]
            if normal_map is None:
                return torch.zeros(height, width, 2, device=self.device)
            if normal_map.shape != mesh.texture.shape:
                normal_map = resized(normal_map, height, width, mesh.repeats)
        return None if normal_map is None else to_slopes(self._tensor(normal_map))

    def _take_texels(self, mesh: Mesh) -> None:
        """Put the texels that are optimised into theta, and keep the images that are not."""
        rates, slopes = self.settings.rates(), self._slopes(mesh)
        self.fixed_texture = None if "texture" in rates else self._optional(mesh.texture)
        self.fixed_slopes = None if "normal_map" in rates else slopes
        self._blocks: Blocks | None = None
        if not self.settings.needs_atlas:
            return
        assert mesh.texture is not None
        self._size = mesh.texture.shape[:2]
        surface, copied = painted_texels(mesh)
        self._nearest = torch.from_numpy(copied).to(self.device)
        if "texture" in rates:
            if self.settings.colour_drift < 1:
                self._blocks = Blocks(surface, self._size, self.device)
            # Unlike numpy, torch picks by short integers without a copy as long ones.
            texels = torch.from_numpy(mesh.texture).view(-1, 3).index_select(0, torch.from_numpy(surface))
            self.theta["texture"] = texels.to(self.device)
        if slopes is not None and "normal_map" in rates:
            self.theta["normal_map"] = slopes.flatten(0, 1).index_select(0, self._tensor(surface))

    def _make_optimiser(self) -> torch.optim.Adam:
        rates = self.settings.rates()
        groups = [{"params": [value.requires_grad_()], "lr": rates[name]} for name, value in self.theta.items()]
        # A tiny epsilon: texels and vertices that are seldom seen get small gradients and must still move.
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
        optimiser.register_step_post_hook(lambda *_: self._project())
        return optimiser

    @torch.no_grad()
    def _project(self) -> None:
        if "normal_map" in self.theta:
            self.theta["normal_map"].clamp_(-_STEEPEST, _STEEPEST)
        if "texture" not in self.theta:
            return
        if self._drift is not None:
            self._drift.bound(self.theta["texture"])
        self.theta["texture"].clamp_(0, 1)

    def _find_prominence(self, blocks: Blocks, generator: torch.Generator) -> Tensor:
        """How much of each block is in the pictures that cameras take, by the way it is turned there, (6, B).

        What a camera sees is a mixture of the ways, so that where none of them drifts it sees little drift.
        """
        # Pictures are linear in the texels: how much of one is seen is its gradient, whatever its colour.
        texels = torch.zeros(len(blocks.texels), 6, device=self.device, requires_grad=True)
        levels = texture.mipmaps(texels.index_select(0, blocks.nearest).view(1, *blocks.size, 6))
        shapes = [level.shape for level in levels]
        seen = texels.new_zeros(sum(level.shape[:3].numel() for level in levels), 6)
        views = [self.views.sample(generator) for _ in range(_SURVEY)]
        # One at a time: six ways take more memory than three channels.
        cameras = [batch[camera : camera + 1] for batch in views for camera in range(len(batch))]
        for camera in track("surveying the texture from all sides", cameras):
            surface = self._see(self.vertices().detach(), camera, self.settings.size)
            rows, weights = texture.lookup(shapes, *surface.place(), self.repeats)
            shares = weights[:, :, None] * surface.prominence()
            seen.index_add_(0, rows.view(-1), shares.view(-1, 6))
        parts = seen.split([shape[:3].numel() for shape in shapes])
        return torch.autograd.grad(levels, texels, [part.view(shape) for part, shape in zip(parts, shapes)])[0].T

    def begin(self, progress: float) -> None:
        """Prepare an iteration: the learning rates at this share of the run, from 0 to 1."""
        for group, rate in zip(self.optimiser.param_groups, self.settings.rates().values()):
            group["lr"] = rate * self.settings.final_rate**progress

    def sample_views(self, generator: torch.Generator) -> Cameras:
        return self.views.sample(generator)

    def vertices(self) -> Tensor:
        """Where the welded vertices are, (W, 3); differentiable if they are optimised."""
        parameters = self.theta.get("vertices")
        return self.fixed_vertices if parameters is None else self.preconditioner.vertices(parameters)

    def normals(self, vertices: Tensor) -> Tensor:
        """Of welded vertices (W, 3), one for each index in `normal_faces`, unit length."""
        return self._normals(vertices) if "vertices" in self.theta else self.fixed_normals

    @cached_property
    def fixed_normals(self) -> Tensor:
        """Those of a mesh whose vertices stay."""
        return self._normals(self.fixed_vertices)

    def _normals(self, vertices: Tensor) -> Tensor:
        return vertex_normals(vertices, self.faces, self.normal_faces, self.normal_count)

    def texture(self) -> Tensor | None:
        """The texture (H, W, 3) in [0, 1], if there is one; differentiable if it is optimised."""
        return self._image("texture") if "texture" in self.theta else self.fixed_texture

    @cached_property
    def fixed_light(self) -> Tensor | None:
        """The texture as linear light, (H, W, 3), if there is one that is not optimised."""
        return None if self.fixed_texture is None else to_linear(self.fixed_texture)

    def slopes(self) -> Tensor | None:
        """The normal map as slopes (H, W, 2), if there is one; differentiable if it is optimised."""
        return self._image("normal_map") if "normal_map" in self.theta else self.fixed_slopes

    def _image(self, name: str) -> Tensor:
        texels = self.theta[name]
        return texels.index_select(0, self._nearest).view(*self._size, texels.shape[1])

    def render(self, views: Cameras) -> ObjectRender:
        """Images of the views at `settings.size`, each on a random colour of its own.

        So holes cannot be filled with paint of the background's colour.
        """
        vertices = self.vertices()
        drawn = self._draw(vertices, views, self.settings.size, (self.settings.look, "alpha"))
        colours = torch.rand(len(views), 3, generator=self.generator).to(vertices)
        background = colours[:, :, None, None].expand_as(drawn[self.settings.look])
        images = drawn[self.settings.look] + (1 - drawn["alpha"]) * background
        return ObjectRender(values=images, background=background, losses=self._losses(vertices, len(views)))

    def _losses(self, vertices: Tensor, views: int) -> dict[str, Tensor]:
        weight = self.settings.bending * views * self.settings.size**2
        if weight == 0 or "vertices" not in self.theta:
            return {}
        return {"bending": weight * bending(vertices, self.faces, self.neighbours)}

    def regularise(self, render: Render) -> dict[str, Tensor]:
        assert isinstance(render, ObjectRender)
        return render.losses

    def view(self, cameras: Cameras, size: int) -> View:
        """What cameras see at any size; differentiable in what is optimised."""
        drawn = self._draw(self.vertices(), cameras, size, ("colour", "alpha", "depth", "world_normal"))
        depth = drawn["depth"] / drawn["alpha"].clamp_min(torch.finfo(drawn["alpha"].dtype).tiny)
        return View(drawn["colour"], drawn["alpha"], depth, F.normalize(drawn["world_normal"], dim=1))

    def _draw(self, vertices: Tensor, views: Cameras, size: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Pictures (B, C, size, size) by name, antialiased and premultiplied by alpha."""
        surface = self._see(vertices, views, size)
        return surface.pictures(**{name: getattr(surface, name)() for name in names})

    def _see(self, vertices: Tensor, views: Cameras, size: int) -> _Surface:
        clip = to_clip(vertices, views.world_to_clip().to(vertices))
        return _Surface(self, vertices, views, clip, rasterize(clip, self.faces, (size, size)))

    def mesh(self) -> Mesh:
        """The mesh as it is now, with the vertices, faces and UVs in their first order.

        Raises:
            BadMesh: a texel or a vertex is NaN or infinite.
        """
        mesh = self._start
        paint = self.texture()
        if paint is not None:
            mesh = replace(mesh, texture=paint.detach().cpu().numpy())
        slopes = self.slopes()
        if slopes is not None and "normal_map" in self.theta:
            mesh = replace(mesh, normal_map=to_normal_map(slopes.detach()).cpu().numpy())
        if "vertices" in self.theta:
            vertices = self.vertices().detach().cpu().numpy()[self._place]
            normals = None if mesh.normals is None else topology.vertex_normals(vertices, mesh.faces, mesh.normals)
            mesh = replace(mesh, vertices=vertices, normals=normals)
        return mesh

    def state_dict(self) -> dict[str, Any]:
        theta = {name: value.detach() for name, value in self.theta.items()}
        return {"theta": theta, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict` of a scene of the same mesh and settings.

        Raises:
            BadMesh: its mesh had another size, or something else was optimised.
        """
        shapes, own = ({n: tuple(v.shape) for n, v in theta.items()} for theta in (state["theta"], self.theta))
        if shapes != own:
            raise BadMesh(f"the saved state is of another mesh or setting: it has {shapes} where {own} is optimised")
        with torch.no_grad():
            for name, value in self.theta.items():
                value.copy_(state["theta"][name])
        self.generator.set_state(state["generator"])


def look_at(mesh: Mesh, device: torch.device | str = "cpu") -> Look:
    """What cameras see of a mesh, whatever attributes it has; no gradient."""
    scene = MeshScene(mesh, MeshSettings(optimise="geometry"), seed=0, device=device)
    return torch.no_grad()(scene.view)


@dataclass(frozen=True)
class _Surface:
    """What P covered pixels see of a scene's mesh, by kind, each (P, C)."""

    scene: MeshScene
    vertices: Tensor
    views: Cameras
    clip: Tensor
    fragments: Fragments

    def pictures(self, **columns: Tensor) -> dict[str, Tensor]:
        """Columns (P, C) as pictures (B, C, H, W), antialiased and premultiplied by alpha."""
        image = self.fragments.image(torch.cat(list(columns.values()), dim=1))
        image = antialias(image, self.fragments, self.clip, self.scene.edges).permute(0, 3, 1, 2)
        return dict(zip(columns, image.split([column.shape[1] for column in columns.values()], dim=1)))

    def alpha(self) -> Tensor:
        return torch.ones_like(self.fragments.depth)

    def colour(self) -> Tensor:
        """The mesh's own, shaded unless light is in it, in [0, 1]."""
        return self.lit(self._albedo())

    def lit(self, albedo: Tensor) -> Tensor:
        """What is seen of colours (P, C): themselves, or times the light."""
        return albedo * self._light() if self.scene._lit else albedo

    def _albedo(self) -> Tensor:
        scene, fragments = self.scene, self.fragments
        if scene.fixed_light is not None:
            return to_display(self._texels(scene.fixed_light))
        paint = scene.texture()
        if paint is not None:
            # A texture under optimisation is mixed as displayed, as in the pictures of the prior; that is cheaper, too.
            return self._texels(paint)
        if scene.colours is not None:
            return to_display(interpolate(to_linear(scene.colours), scene.uv_faces, fragments))
        return self.vertices.new_full((len(fragments.pixel), 3), BARE)

    def _texels(self, image: Tensor) -> Tensor:
        """Of an image (H, W, C), (P, C)."""
        return texture.sample(texture.mipmaps(image[None]), *self.place(), self.scene.repeats)

    def place(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where in the atlas each pixel is, as `texture.lookup` takes it."""
        uvs, faces = self.scene.uvs, self.scene.uv_faces
        assert uvs is not None
        return interpolate(uvs, faces, self.fragments), self.fragments.view, footprint(uvs, faces, self.fragments)

    def prominence(self) -> Tensor:
        """How much the colour of each pixel is in the pictures turned each of six ways, (P, 6)."""
        colours = self.vertices.new_zeros(len(self.fragments.pixel), 6, requires_grad=True)
        drawn = self.pictures(colours=self.lit(colours), normal=self.world_normal())
        ways = six_ways(F.normalize(drawn["normal"].detach(), dim=1))
        return torch.autograd.grad(drawn["colours"], colours, ways)[0]

    def _light(self) -> Tensor:
        """Half Lambert from one direction, (P, 1) in [0, 1]: no side is so dark that its slopes vanish."""
        normal = self.world_normal()
        towards = F.normalize(normal.new_tensor(_LIGHT), dim=0)
        return _AMBIENT + (1 - _AMBIENT) * (0.5 + 0.5 * normal @ towards)[:, None]

    def depth(self) -> Tensor:
        """Distance from the camera."""
        position = interpolate(self.vertices, self.scene.faces, self.fragments)
        origin = self.views.position().to(position)[self.fragments.view]
        return (position - origin).norm(dim=1, keepdim=True)

    def world_normal(self) -> Tensor:
        """Outward, interpolated between the vertices and bent by the normal map, unit length."""
        scene, fragments = self.scene, self.fragments
        normals = scene.normals(self.vertices)
        smooth = F.normalize(interpolate(normals, scene.normal_faces, fragments), dim=1)
        slopes = scene.slopes()
        if slopes is None or scene.uvs is None:
            return smooth
        tangents = vertex_tangents(self.vertices, scene.faces, scene.uvs, scene.uv_faces, normals, scene.normal_faces)
        return bend(smooth, interpolate(tangents, scene.uv_faces, fragments), self._texels(slopes))

    def normal(self) -> Tensor:
        """The map of normals in camera axes (right, up, towards the camera), from [-1, 1] to [0, 1]."""
        normal = self.world_normal()
        axes = torch.stack(self.views.axes(), dim=1).to(normal)[self.fragments.view]
        return 0.5 + 0.5 * torch.einsum("pij,pj->pi", axes, normal)


def painted_texels(mesh: Mesh) -> tuple[Ints, Ints]:
    """The T texels that hold the colours of a mesh's (H, W, 3) texture, and for every texel the one it copies.

    Those that show no surface copy the nearest that does. Left free they would be seen only in small
    mipmaps, and Adam would drive them to any colour that makes up for a neighbour's.

    Returns:
        Indices (T,) of texels, row * W + column; and indices (H * W,) in [0, T).

    Raises:
        BadMesh: the UVs cover no texel, or the texture's size is out of range.
    """
    assert mesh.texture is not None and mesh.uvs is not None
    height, width = mesh.texture.shape[:2]
    surface: Ints = np.arange(height * width, dtype=np.int32)
    # Other textures are not an atlas in which the places that show the surface are known.
    if height == width and mesh.uvs.min() >= 0 and mesh.uvs.max() <= 1:
        surface = surface_indices(mesh, width)
    number = np.full(height * width, -1, np.int32)
    number[surface] = np.arange(len(surface), dtype=np.int32)
    copied = number.take(nearest(number.reshape(height, width) >= 0))
    # The backward pass of `index_select` is several times slower by shorter integers.
    return surface, copied.astype(np.int64)


def vertex_normals(vertices: Tensor, faces: Tensor, normal_faces: Tensor, count: int) -> Tensor:
    """Unit normals (M, 3), each the mean of the faces around it, weighted by area. Differentiable.

    Args:
        vertices: (V, 3).
        faces: (F, 3) indices into the vertices.
        normal_faces: (F, 3) which normals the faces' corners have: `faces` itself where no edge is hard.
        count: M, above all numbers in `normal_faces`.
    """
    crosses = _face_crosses(vertices, faces)
    total = vertices.new_zeros(count, 3)
    return F.normalize(total.index_add(0, normal_faces.flatten(), crosses.repeat_interleave(3, dim=0)), dim=1)


def neighbours(faces: Tensor) -> Tensor:
    """The pairs of faces (N, 2) on both sides of an edge, of (F, 3) faces on welded vertices."""
    pairs = torch.cat([faces[:, [1, 2]], faces[:, [2, 0]], faces[:, [0, 1]]]).sort(dim=1).values
    edge, order = (pairs[:, 0] * (faces.max() + 1) + pairs[:, 1]).sort(stable=True)
    same = edge[1:] == edge[:-1]
    return torch.stack([order[:-1][same], order[1:][same]], dim=1) % len(faces)


def bending(vertices: Tensor, faces: Tensor, neighbours: Tensor) -> Tensor:
    """Neighbouring faces should face alike: the mean of 1 - cos of the angles between their normals.

    Args:
        vertices: (V, 3); differentiable.
        faces: (F, 3).
        neighbours: (N, 2) pairs of faces.

    Returns:
        A scalar in [0, 2], zero for a plane.
    """
    normals = F.normalize(_face_crosses(vertices, faces), dim=1)
    one, other = (normals.index_select(0, side) for side in neighbours.unbind(1))
    return (1 - (one * other).sum(1)).mean()


def _face_crosses(vertices: Tensor, faces: Tensor) -> Tensor:
    """(F, 3), along the face's normal, twice its area long."""
    a, b, c = (vertices.index_select(0, corner) for corner in faces.unbind(1))
    return torch.linalg.cross(b - a, c - a)
