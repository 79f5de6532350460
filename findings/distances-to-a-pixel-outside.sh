#!/usr/bin/env bash
# SciPy's distance transform of a mask without background measures to a pixel that does not exist
#
# Expected:  where no pixel is zero there is no nearest one: an infinite distance, or an error.
# Version:   scipy 1.17.1
# Behaviour: `distance_transform_edt` gives the distances to the pixel in row -1, column 0, and as indices -1 and 0,
#            which are valid in NumPy: they read the last row. Its two siblings answer 1.3e154 and -1 instead.
# Output:    distances: [1.0, 1.41, 2.24, 3.16], [2.0, 2.24, 2.83, 3.61], [3.0, 3.16, 3.61, 4.24]
#            nearest background pixels: [(-1, 0)]
#            a texture of 0 to 11, filled by these indices: [[8, 8, 8, 8], [8, 8, 8, 8], [8, 8, 8, 8]]
#            distance_transform_bf and _cdt say 1.3407807929942596e+154 -1
# Hurt:      who makes signed distances of masks (a close-up that fills the picture gets a slope from one corner) or
#            fills the empty texels of a texture with the nearest painted one (where none is painted, the
#            texture comes back as copies of one texel of its last row, as if it had been filled).
# To do:     ask `mask.all()` first.
set -euo pipefail
PYTHON=${PYTHON:-python3.11}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$PYTHON" -m venv "$folder"
"$folder/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1
"$folder/bin/python" - <<'END'
import numpy as np
from scipy import ndimage

full = np.ones((3, 4), bool)
distances, (rows, columns) = ndimage.distance_transform_edt(full, return_indices=True)
print("distances:", ", ".join(map(str, distances.round(2).tolist())))
print("nearest background pixels:", sorted({(int(r), int(c)) for r, c in zip(rows.flat, columns.flat)}))

texture = np.arange(12).reshape(3, 4)
print("a texture of 0 to 11, filled by these indices:", texture[rows, columns].tolist())
siblings = [transform(full).max() for transform in (ndimage.distance_transform_bf, ndimage.distance_transform_cdt)]
print("distance_transform_bf and _cdt say", *siblings)

# The same mask with one pixel of background is measured rightly.
full[2, 3] = False
assert ndimage.distance_transform_edt(full)[0, 3] == 2
corner = np.hypot(*np.ogrid[1:4, 0:4])
assert np.allclose(distances, corner) and (rows == -1).all() and (columns == 0).all(), "the behaviour has changed"
END
