"""The mesh every part of the project hands around."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


class BadMesh(ValueError):
    """A mesh, or what should become one, cannot be used; the message says why."""


class Source(Protocol):
    """A file that a mesh was read of."""

    def notice(self, mesh: Mesh, optimised: Collection[str]) -> str | None:
        """What of the file `glb` will keep that is not shown, and what it cannot; None if there is no such thing.

        Args:
            mesh: as it is before it is optimised.
            optimised: "texture", "vertices", "normal_map".

        Raises:
            BadMesh: vertices are to move and none can.
        """

    def glb(self, mesh: Mesh) -> bytes:
        """The file with what became of the mesh, as a GLB file."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with optional surface attributes, in the conventions of glTF.

    Right-handed, Y up, faces counter-clockwise seen from outside. Vertices are split where the UV atlas
    is cut, so a mesh with UVs is closed only once its vertices are welded (`topology.weld`).

    Arrays of floats become float32, and faces int64.

    Attributes:
        vertices: (V, 3) scene units.
        faces: (F, 3) indices into the vertices.
        uvs: (V, 2), origin at the texture's top left.
        texture: (H, W, 3) in [0, 1], display-referred (sRGB); needs uvs.
        normals: (V, 3) unit length.
        normal_map: (H, W, 3) in [0, 1], tangent-space normals as glTF encodes them; needs uvs.
        colours: (V, 3) in [0, 1], display-referred (sRGB).
        unlit: the colours already contain the light, so a viewer should add none.
        repeats: whether the texture starts again beyond its left and right border, and beyond its upper and lower one;
            else the border's texels go on.
        double_sided: faces are seen from behind too.
        source: the file that it was read of, for what a `Mesh` does not hold.
        origin: (V,) which vertex of the file each was; None where they are the file's own, in its order.

    Raises:
        BadMesh: no faces, NaN, an index out of range, or an attribute of the wrong shape.
    """

    vertices: Floats
    faces: Ints
    uvs: Floats | None = None
    texture: Floats | None = None
    normals: Floats | None = None
    normal_map: Floats | None = None
    colours: Floats | None = None
    unlit: bool = False
    repeats: tuple[bool, bool] = (False, False)
    double_sided: bool = False
    source: Source | None = None
    origin: Ints | None = None

    def __post_init__(self) -> None:
        if np.size(self.faces) == 0:
            raise BadMesh("the mesh has no faces")
        count = len(self.vertices)
        self._set("vertices", np.float32, (count, 3))
        self._set("faces", np.int64, (len(self.faces), 3))
        self._set("uvs", np.float32, (count, 2))
        self._set("normals", np.float32, (count, 3))
        self._set("colours", np.float32, (count, 3))
        for name in ("texture", "normal_map"):
            if (image := getattr(self, name)) is not None:
                self._set(name, np.float32, (*np.shape(image)[:2], 3))
                if self.uvs is None:
                    raise BadMesh(f"the mesh has a {name.replace('_', ' ')} but no UVs")
        if self.faces.min() < 0 or self.faces.max() >= count:
            raise BadMesh(f"the mesh has {count} vertices but its faces index {self.faces.min()} to {self.faces.max()}")

    def _set(self, name: str, dtype: type, shape: tuple[int, ...]) -> None:
        """Give an attribute its type, after checking its shape and values."""
        if getattr(self, name) is None:
            return
        values: np.ndarray = np.ascontiguousarray(getattr(self, name), dtype)
        if values.shape != shape:
            raise BadMesh(f"the mesh's {name} have shape {values.shape}, not {shape}")
        if not np.isfinite(values).all():
            raise BadMesh(f"the mesh's {name} contain NaN or infinity")
        object.__setattr__(self, name, values)
