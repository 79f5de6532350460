#!/usr/bin/env bash
# scikit-image's marching cubes stretches the vertices by `spacing`, but not the normals
#
# Expected:  with `spacing`, the vertices and the normals at them describe one surface.
# Version:   scikit-image 0.26.0
# Behaviour: vertices come in units of `spacing`, normals as if every voxel were a cube. They have unit length and
#            look plausible; the documentation calls them "as calculated from the data".
# Output:    spacing (1.0, 1.0, 1.0): vertices within 0.01 of a sphere of radius 20; normals up to 1 degrees off, 1 once
#            divided by the spacing
#            spacing (1.0, 1.0, 4.0): vertices within 0.10 of a sphere of radius 20; normals up to 42 degrees off, 5
#            once divided by the spacing
# Hurt:      whoever extracts from voxels that are no cubes (CT and MR slices, fields sampled in a box) and shades,
#            exports or offsets by these normals: light falls on another shape.
# To do:     divide the normals by the spacing and normalise them again, or take the mesh's own.
set -euo pipefail
PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$PYTHON" -m venv "$folder"
"$folder/bin/pip" install --quiet numpy==2.4.6 scikit-image==0.26.0
"$folder/bin/python" - <<'END'
import numpy as np
from skimage.measure import marching_cubes

RADIUS = 20.0


def degrees(normals, radial):
    """Largest angle between lines along normals, of any sign, and the sphere's radii."""
    return np.degrees(np.arccos(np.abs((normals * radial).sum(1)).clip(0, 1))).max()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


for spacing in ((1.0, 1.0, 1.0), (1.0, 1.0, 4.0)):
    # The distance to a sphere's surface, in the same world units whatever the voxels.
    axes = [np.arange(-24.0, 24.1, step) for step in spacing]
    field = RADIUS - np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    vertices, _, normals, _ = marching_cubes(field, 0.0, spacing=spacing)
    vertices += [axis[0] for axis in axes]
    away = np.abs(np.linalg.norm(vertices, axis=1) - RADIUS).max()
    wrong, mended = degrees(normals, unit(vertices)), degrees(unit(normals / spacing), unit(vertices))
    print(f"spacing {spacing}: vertices within {away:.2f} of a sphere of radius {RADIUS:.0f}; "
          f"normals up to {wrong:.0f} degrees off, {mended:.0f} once divided by the spacing")
    assert away < 0.5
assert wrong > 30, "the behaviour has changed: normals follow the spacing"
assert mended < 10
END
