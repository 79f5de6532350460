"""The scenes in three dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

BACKGROUNDS = ("random", "learned")
_OPTIMISED = {
    "texture": ("texture",),
    "geometry": ("vertices",),
    "both": ("texture", "vertices"),
    "normal_map": ("normal_map",),
}
TARGETS = tuple(_OPTIMISED)
LOOKS = ("normal", "colour")


@dataclass(frozen=True)
class HashGridSettings:
    """Size of a hash grid.

    Attributes:
        levels: how many lattices, geometrically spaced.
        features: per vertex and level.
        entries_log2: log2 of the most entries a level's table may have.
        coarsest: cells per axis of the first level.
        finest: cells per axis of the last level.

    Raises:
        ValueError: a value is out of its range.
    """

    levels: int = 6
    features: int = 4
    entries_log2: int = 16
    coarsest: int = 4
    finest: int = 64

    def __post_init__(self) -> None:
        _at_least_one(self, "levels", "features", "entries_log2", "coarsest", "finest")

    @property
    def width(self) -> int:
        """Features of a point over all levels."""
        return self.levels * self.features

    def resolutions(self) -> list[int]:
        """Cells per axis of each level."""
        ratio = self.finest / self.coarsest
        return [round(self.coarsest * ratio ** (i / max(self.levels - 1, 1))) for i in range(self.levels)]

    def entries(self, resolution: int) -> int:
        """Entries of the table of a level with so many cells per axis."""
        return min((resolution + 1) ** 3, 1 << self.entries_log2)


@dataclass(frozen=True)
class NeRFSettings:
    """Size, rendering and training of a radiance field. The defaults suit 64 pixels on a CPU.

    "Progress" is the share of the run that is done, from 0 to 1.

    Attributes:
        grid: the hash grid.
        hidden: width of the hidden layer of each head.
        blob_density: density at the origin of the initial ball, per scene unit.
        blob_radius: where the initial density has fallen to ln 2; it goes on falling exponentially.
        size: side of the images handed to the prior, in pixels.
        coarse_size: side of the first renders; it doubles until it reaches `size`, evenly over
            `refine_until`, and smaller renders are enlarged to `size`.
        coarse_levels: levels of the grid in use at the start; the others join one by one.
        refine_until: progress from which size and levels are complete.
        samples: steps of a ray across the whole scene.
        occupancy: cells per axis of the grid of occupied space.
        occupancy_every: iterations between its updates.
        least_density: space with less is skipped. A lower mean density over the cube lowers it.
        background: "random": each view on a colour of its own, so that holes cannot be filled with
            density of the background's colour; "learned": a smooth surround of the scene.
        orientation, opacity, distortion: weights of the losses in `render.regularisers`, summed over the
            pixels of all views, as the flow's loss is.
        grid_rate, head_rate: Adam's learning rates at the start, of the grid and of all else.
        final_rate: share of the learning rates that is left at the end; they fall exponentially.
        rays_per_chunk: rays rendered at once. More rays are rendered a chunk at a time and again in the
            backward pass: the same result in bounded memory, about a third slower.

    Raises:
        ValueError: a value is out of its range.
    """

    grid: HashGridSettings = field(default_factory=HashGridSettings)
    hidden: int = 32
    blob_density: float = 10.0
    blob_radius: float = 0.5
    size: int = 64
    coarse_size: int = 32
    coarse_levels: float = 3.0
    refine_until: float = 0.3
    samples: int = 64
    occupancy: int = 32
    occupancy_every: int = 8
    least_density: float = 0.05
    background: str = "random"
    orientation: float = 0.0
    opacity: float = 0.0
    distortion: float = 0.0
    grid_rate: float = 0.05
    head_rate: float = 0.01
    final_rate: float = 0.05
    rays_per_chunk: int = 1 << 14

    def __post_init__(self) -> None:
        _one_of(self, "background", BACKGROUNDS)
        _at_least_one(self, "hidden", "size", "coarse_size", "samples")
        _at_least_one(self, "occupancy", "occupancy_every", "rays_per_chunk")
        _positive(self, "blob_density", "blob_radius", "grid_rate", "head_rate", "final_rate")
        _not_negative(self, "coarse_levels", "least_density", "orientation", "opacity", "distortion")
        if not 0 <= self.refine_until <= 1:
            raise ValueError(f"refine_until is {self.refine_until:g}; it must lie between 0 and 1")

    def formed_as(self, other: NeRFSettings) -> NeRFSettings:
        """These settings for a field with the sizes and the initial ball of another."""
        names = ("grid", "hidden", "occupancy", "blob_density", "blob_radius")
        return replace(self, **{name: getattr(other, name) for name in names})

    def render_size(self, progress: float) -> int:
        """Side of renders, before they are enlarged to `size`."""
        doublings = max(math.ceil(math.log2(self.size / self.coarse_size)), 0)
        done = doublings if progress >= self.refine_until else int(doublings * progress / self.refine_until)
        return min(self.coarse_size << done, self.size)

    def active_levels(self, progress: float) -> float:
        """Levels of the grid in use; a fraction is how much the last one counts."""
        share = 1.0 if progress >= self.refine_until else progress / self.refine_until
        return self.coarse_levels + (self.grid.levels - self.coarse_levels) * share


@dataclass(frozen=True)
class MeshSettings:
    """What of a mesh is optimised, from which pictures, and how fast. The defaults suit 64 pixels on a CPU.

    Attributes:
        optimise: "texture"; "geometry" (the vertices; which ones form faces never changes); "both"; or
            "normal_map", slopes finer than the faces, which change how light falls and no outline.
        geometry_look: what the prior sees while geometry or a normal map alone is optimised: "normal", the
            normals in camera axes, which show every slope and leave nothing to be explained by paint; or
            "colour", the mesh as it looks, for a prior that has never seen such pictures. Where light is
            baked into the colours, only outlines and the paint's place tell of the shape then, and nothing
            of a normal map.
        size: side of the images handed to the prior, in pixels.
        texture_rate: Adam's learning rate for texels, in colour from 0 to 1.
        colour_drift: most that the mean colour of what cameras see of the texture may move from where it
            started, in each channel from 0 to 1, on each of the six sides of the object (top, front...);
            1 leaves it free. A model of its own taste would repaint what it should only refine.
        geometry_rate: Adam's learning rate for the vertices' parameters, in scene units; details take
            smaller steps, as they are smoothed. phi has to follow: where it lags behind the shape, the flow
            takes the shape's last move for a want of more, and the mesh swells without end.
        normal_rate: Adam's learning rate for the normal map, in slopes.
        final_rate: share of the learning rates that is left at the end; they fall exponentially.
        smoothing: lambda of the vertices' preconditioning (`mesh.precondition`): a step moves
            neighbourhoods about sqrt(lambda) edges wide. Finer meshes and noisier priors want more; too
            much leaves details out.
        bending: weight of the loss on the angles between neighbouring faces, summed over the pixels of all
            views, as the flow's loss is.

    Raises:
        ValueError: a value is out of its range.
    """

    optimise: str = "texture"
    geometry_look: str = "normal"
    size: int = 64
    texture_rate: float = 0.02
    colour_drift: float = 1.0
    geometry_rate: float = 0.01
    normal_rate: float = 0.03
    final_rate: float = 0.2
    smoothing: float = 10.0
    bending: float = 0.0

    def __post_init__(self) -> None:
        _one_of(self, "optimise", TARGETS)
        _one_of(self, "geometry_look", LOOKS)
        _at_least_one(self, "size")
        _positive(self, "texture_rate", "geometry_rate", "normal_rate", "final_rate")
        _not_negative(self, "colour_drift", "smoothing", "bending")

    def rates(self) -> dict[str, float]:
        """The learning rate at the start of each thing that is optimised: "texture", "vertices", "normal_map"."""
        rates = {"texture": self.texture_rate, "vertices": self.geometry_rate, "normal_map": self.normal_rate}
        return {name: rates[name] for name in _OPTIMISED[self.optimise]}

    @property
    def needs_atlas(self) -> bool:
        """Whether texels are optimised, which need a place in an atlas."""
        return self.optimise != "geometry"

    @property
    def look(self) -> str:
        """What the prior sees: one of `LOOKS`."""
        return "colour" if "texture" in self.rates() else self.geometry_look


def _one_of(settings: object, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(settings, name) not in allowed:
        raise ValueError(f"{name} is {getattr(settings, name)!r}; it must be one of {', '.join(allowed)}")


def _at_least_one(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least 1")


def _positive(settings: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} is {getattr(settings, name):g}; it must be above 0")


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise ValueError(f"{name} is {getattr(settings, name):g}; it must be 0 or more")
