"""The radiance field scene: a hash grid with density and colour heads, volume rendered.

Colour does not depend on the direction of view, so that it can become a texture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..cameras import Cameras
from ..render import regularisers
from ..render.hashgrid import HashGrid
from ..render.volume import composite, march, occupancy_grid
from ..settings.cameras import ViewRange
from ..settings.scenes import HashGridSettings, NeRFSettings
from ..state import BadFile, load_state, make_generator, reading, save_state
from ..views import View
from .scene import ObjectRender, Render


class Head(nn.Module):
    """A perceptron with one hidden layer, whose derivative by its input is at hand."""

    def __init__(self, inputs: int, hidden: int, outputs: int, generator: torch.Generator):
        super().__init__()
        # skip_init: a Linear's own initial values would come from the global generator.
        self.hidden = nn.utils.skip_init(nn.Linear, inputs, hidden)
        self.out = nn.utils.skip_init(nn.Linear, hidden, outputs)
        for layer in (self.hidden, self.out):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(P, inputs) -> (P, outputs)."""
        return self.out(F.relu(self.hidden(features)))

    def slope(self, features: Tensor) -> Tensor:
        """Derivative (P, inputs) of the first output."""
        active = (self.hidden(features) > 0).to(features)
        return (active * self.out.weight[0]) @ self.hidden.weight


class Field(nn.Module):
    """Density, colour and normals at points (P, 3) of the unit sphere.

    Args:
        settings: sizes and the initial density.
        generator: of the initial parameters; on the CPU.
    """

    def __init__(self, settings: NeRFSettings, generator: torch.Generator):
        super().__init__()
        self.settings = settings
        self.grid = HashGrid(settings.grid, generator)
        self.density_head = Head(settings.grid.width, settings.hidden, 1, generator)
        self.colour_head = Head(settings.grid.width, settings.hidden, 3, generator)

    def forward(self, points: Tensor, active: float, normals: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Density (P,) per scene unit, colour (P, 3) in [0, 1], and outward unit normals (P, 3) or None."""
        features, jacobian = self.grid(points, active, normals)
        density, colour = self._density(points, features), self.colour_head(features).sigmoid()
        return density, colour, None if jacobian is None else self._normals(points, features, jacobian)

    def density(self, points: Tensor, active: float) -> Tensor:
        """(P,), without the cost of colour."""
        return self._density(points, self.grid(points, active)[0])

    def _density(self, points: Tensor, features: Tensor) -> Tensor:
        settings = self.settings
        ball = settings.blob_density * (1 - points.norm(dim=-1) / settings.blob_radius)
        return F.softplus(self.density_head(features)[:, 0] + ball)

    def _normals(self, points: Tensor, features: Tensor, jacobian: Tensor) -> Tensor:
        """Direction in which density falls, exact and differentiable: softplus keeps directions."""
        slope = torch.einsum("pk,pik->pi", self.density_head.slope(features), jacobian)
        ball = self.settings.blob_density / self.settings.blob_radius * F.normalize(points, dim=-1)
        return F.normalize(ball - slope, dim=-1)


class Surround(nn.Module):
    """A learned background: spherical harmonics up to degree 2, too smooth to paint the object."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(9, 3))

    def forward(self, directions: Tensor) -> Tensor:
        """Colours (R, 3) in [0, 1] of unit directions (R, 3)."""
        x, y, z = directions.unbind(-1)
        basis = [torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1]
        return (torch.stack(basis, dim=-1) @ self.coefficients).sigmoid()


class NeRFScene:
    """A radiance field as a `Scene`.

    `begin` is called before each iteration and tells how far the run is; a scene that nobody calls it
    on has all its detail.

    Args:
        settings: sizes, rendering, training.
        views: where cameras are sampled from.
        seed: of the initial field, jitter, backgrounds and occupancy updates.
        device: of the parameters and renders.
    """

    def __init__(
        self,
        settings: NeRFSettings | None = None,
        views: ViewRange | None = None,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.settings, self.views = settings or NeRFSettings(), views or ViewRange()
        self.device = torch.device(device)
        self.field = Field(self.settings, make_generator(seed, "field")).to(self.device)
        self.surround = Surround().to(self.device) if self.settings.background == "learned" else None
        self.occupancy = occupancy_grid(self.settings.occupancy).to(self.device)
        self.generator = make_generator(seed, "nerf")
        self.iteration, self.progress = 0, 1.0
        self.optimiser: torch.optim.Optimizer = self._make_optimiser()
        self._update_occupancy()

    def _make_optimiser(self) -> torch.optim.Adam:
        heads = [*self.field.density_head.parameters(), *self.field.colour_head.parameters()]
        heads += self.surround.parameters() if self.surround else []
        groups = [
            {"params": list(self.field.grid.parameters()), "lr": self.settings.grid_rate},
            {"params": heads, "lr": self.settings.head_rate},
        ]
        # A tiny epsilon: entries that are seldom seen get small gradients and must still move. AMSGrad: the flow's
        # displacement falls with sigma, and so must the steps; Adam's keep their size, and once the model takes any
        # brightness for granted they add up phi's small errors to a random walk of the whole object's colour.
        return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, amsgrad=True)

    def start_from(self, other: NeRFScene) -> None:
        """Copy another scene's field and occupied space; its settings are of the same form (`formed_as`)."""
        self.field.load_state_dict(other.field.state_dict())
        self.occupancy.load_state_dict(other.occupancy.state_dict())

    def begin(self, progress: float) -> None:
        """Prepare an iteration: detail, learning rates and occupied space at this share of the run."""
        self.progress = progress
        decay = self.settings.final_rate**progress
        for group, rate in zip(self.optimiser.param_groups, (self.settings.grid_rate, self.settings.head_rate)):
            group["lr"] = rate * decay
        self.iteration += 1
        self._update_occupancy()

    def sample_views(self, generator: torch.Generator) -> Cameras:
        return self.views.sample(generator)

    def render(self, views: Cameras) -> ObjectRender:
        """Images of the views at `settings.size`, on the background of the settings; draws jitter."""
        settings, count = self.settings, len(views)
        size = settings.render_size(self.progress)
        origins, directions = self._rays(views, size)
        jitter = torch.rand(len(origins), generator=self.generator).to(self.device)
        rays = self._render_rays(origins, directions, jitter, normals=settings.orientation > 0)
        background = self._background(directions, count)
        images = rays["colour"] + (1 - rays["alpha"]) * background
        images, background = (self._enlarge(i.view(count, size, size, 3)) for i in (images, background))
        pixels = count * settings.size**2
        weights = {name: getattr(settings, name) for name in ("orientation", "opacity", "distortion")}
        losses = {name: weight * pixels * rays[name].mean() for name, weight in weights.items() if weight > 0}
        return ObjectRender(values=images, background=background, losses=losses)

    def regularise(self, render: Render) -> dict[str, Tensor]:
        assert isinstance(render, ObjectRender)
        return render.losses

    @torch.no_grad()
    def view(self, cameras: Cameras, size: int) -> View:
        """What cameras see at any size; no gradient."""
        origins, directions = self._rays(cameras, size)
        jitter = torch.full((len(origins),), 0.5, device=self.device)
        rays = self._render_rays(origins, directions, jitter, normals=True)
        alpha = rays["alpha"]
        depth = rays["depth"] / alpha.clamp_min(torch.finfo(alpha.dtype).tiny)
        columns = (rays["colour"], alpha, depth, F.normalize(rays["normal"], dim=-1))
        return View(*(c.view(len(cameras), size, size, -1).permute(0, 3, 1, 2) for c in columns))

    def _rays(self, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
        """Origins and directions (B * size * size, 3), view by view."""
        return tuple(r.reshape(-1, 3).to(self.device) for r in cameras.rays(size))  # type: ignore[return-value]

    def _enlarge(self, images: Tensor) -> Tensor:
        """(B, h, w, 3) to (B, 3, size, size)."""
        images = images.permute(0, 3, 1, 2)
        size = self.settings.size
        return images if images.shape[-1] == size else F.interpolate(images, (size, size), mode="bilinear")

    def _background(self, directions: Tensor, views: int) -> Tensor:
        if self.surround is not None:
            return self.surround(directions)
        colours = torch.rand(views, 3, generator=self.generator).to(self.device)
        return colours.repeat_interleave(len(directions) // views, dim=0)

    def _render_rays(self, origins: Tensor, directions: Tensor, jitter: Tensor, normals: bool) -> dict[str, Tensor]:
        """`_render_chunk` of any number of rays."""
        rays = (origins, directions, jitter)
        chunk = self.settings.rays_per_chunk
        if len(origins) <= chunk:
            return self._render_chunk(*rays, normals)
        parts = [
            checkpoint(self._render_chunk, *part, normals, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*(r.split(chunk) for r in rays))
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _render_chunk(self, origins: Tensor, directions: Tensor, jitter: Tensor, normals: bool) -> dict[str, Tensor]:
        """What R rays see: colour (R, 3), alpha, depth (R, 1), normal (R, 3); all but alpha premultiplied
        by it; and the regularisers (R,)."""
        samples = march(origins, directions, self.occupancy, 2 / self.settings.samples, jitter)
        points = samples.positions(origins, directions)
        density, colour, normal = self.field(points, self._active(), normals)
        middle = (samples.start + samples.end)[:, None] / 2
        seen = composite(samples, density, torch.cat([colour, middle, *([normal] if normals else [])], dim=-1))
        rays = {
            "colour": seen.values[:, :3],
            "depth": seen.values[:, 3:4],
            "alpha": seen.alpha[:, None],
            "opacity": regularisers.opacity(seen.alpha),
        }
        weights = samples.pad(seen.weights)
        if self.settings.distortion > 0:
            rays["distortion"] = regularisers.distortion(weights, samples.pad(samples.start), samples.pad(samples.end))
        if normals:
            facing = (normal * directions.index_select(0, samples.ray)).sum(-1)
            rays["normal"] = seen.values[:, 4:]
            rays["orientation"] = regularisers.orientation(weights, samples.pad(facing))
        return rays

    def _active(self) -> float:
        return self.settings.active_levels(self.progress)

    @torch.no_grad()
    def _update_occupancy(self) -> None:
        """nerfacc's update, with random numbers of our own instead of the global generator's."""
        seed = int(torch.randint(1 << 31, (), generator=self.generator))
        step = 2 / self.settings.samples
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.occupancy.update_every_n_steps(
                self.iteration,
                lambda points: step * self.density(points)[:, None],
                occ_thre=step * self.settings.least_density,
                ema_decay=OCCUPANCY_DECAY,
                n=self.settings.occupancy_every,
            )

    def density(self, points: Tensor) -> Tensor:
        """Density (P,) per scene unit at points (P, 3); no gradient."""
        return self._query(points, self.field.density)

    def colour(self, points: Tensor) -> Tensor:
        """Colour (P, 3) in [0, 1] at points (P, 3); no gradient."""
        return self._query(points, lambda *arguments: self.field(*arguments)[1])

    @torch.no_grad()
    def surface_colour(self, points: Tensor, normals: Tensor) -> Tensor:
        """Colour (P, 3) in [0, 1] that is seen at points (P, 3) of a surface along its unit normals (P, 3).

        A soft field shows the colours of a layer, which differ from the one at the very point. Another surface
        less than 0.1 in front would hide it. No gradient.
        """
        points, normals = points.to(self.device), normals.to(self.device)
        centred = torch.full((len(points),), 0.5, device=self.device)
        rays = self._render_rays(points + _BEFORE * normals, -normals, centred, normals=False)
        return rays["colour"] + (1 - rays["alpha"]) * self.colour(points)

    def normals(self, points: Tensor) -> Tensor:
        """Outward unit normals (P, 3) at points (P, 3); no gradient."""
        return self._query(points, lambda *arguments: self.field(*arguments, normals=True)[2])

    def density_grid(self, resolution: int) -> Tensor:
        """Density (K, K, K) on the lattice over [-1, 1]^3, axes in the order x, y, z; no gradient.

        Outside the unit sphere it is zero: renders do not show what is there.
        """
        axis = torch.linspace(-1, 1, resolution, device=self.device)
        # A slab at a time: the points of the whole lattice would take three times the result's memory.
        slabs = (torch.cartesian_prod(x[None], axis, axis) for x in axis)
        grid = [self.density(slab) * (slab.square().sum(-1) < 1) for slab in slabs]
        return torch.stack(grid).view(resolution, resolution, resolution)

    @torch.no_grad()
    def _query(self, points: Tensor, function: Callable[[Tensor, float], Tensor]) -> Tensor:
        """A function of the field, as many points at once as a chunk of rays may have."""
        chunk = self.settings.rays_per_chunk * self.settings.samples
        return torch.cat([function(part.to(self.device), self._active()) for part in points.split(chunk)])

    def state_dict(self) -> dict[str, Any]:
        return {
            "field": dict(self.field.state_dict()),
            "surround": dict(self.surround.state_dict()) if self.surround else None,
            "occupancy": {"occs": self.occupancy.occs, "binaries": self.occupancy.binaries},
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "progress": self.progress,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.field.load_state_dict(state["field"])
        if self.surround:
            self.surround.load_state_dict(state["surround"])
        self.occupancy.load_state_dict(state["occupancy"], strict=False)
        self.generator.set_state(state["generator"])
        self.iteration, self.progress = state["iteration"], state["progress"]


_BEFORE = 0.1
"""Distance in front of a surface from which its colour is looked at: the soft layer before it shows, too."""

OCCUPANCY_DECAY = 0.7
"""How much of a cell's largest density is remembered from one update to the next: each update looks at
one random point of the cell, so a few of them together see what is in it."""


def save_field(path: Path, scene: NeRFScene) -> None:
    """Write a radiance field with its settings, as safetensors; the optimiser's state is not kept."""
    save_state(path, {"field": {"settings": asdict(scene.settings), "scene": scene.state_dict()}})


def load_field(path: Path, device: torch.device | str = "cpu") -> NeRFScene:
    """Read what `save_field` wrote.

    Raises:
        BadFile: the file is missing, broken, or not a radiance field.
    """
    state = load_state(path)
    if "field" not in state:
        raise BadFile(f"{path} is not a radiance field")
    with reading(path):
        settings = state["field"]["settings"]
        settings = NeRFSettings(**{**settings, "grid": HashGridSettings(**settings["grid"])})
        scene = NeRFScene(settings, seed=0, device=device)
        scene.load_state_dict(state["field"]["scene"])
    if not all(torch.isfinite(value).all() for value in scene.field.state_dict().values()):
        raise BadFile(f"{path} holds NaN or infinity")
    return scene
