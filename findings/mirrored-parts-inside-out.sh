#!/usr/bin/env bash
# three.js exports a mirrored part inside out
#
# Expected:  a part that is mirrored by a negative scale, and that three.js draws as the solid it is, leaves
#            the exporters as that solid.
# Version:   three 0.187.0 (npm), its exporters for STL, OBJ and PLY
# Behaviour: they move the vertices into place but keep the order of each triangle's corners, so every face of
#            the part looks inwards. STL's normals do so too; OBJ's and PLY's point outwards, against their faces.
# Output:    a box of 1 x 2 x 3, scaled by -1 along x
#              STL: volume -6.000, normals point inwards
#              OBJ: volume -6.000, normals point outwards
#              PLY: volume -6.000, normals point outwards
# Hurt:      who models one half and mirrors it, and exports in a browser (ComfyUI's 3D viewer writes OBJ and STL
#            by three.js): the volume is negative, engines cull the outside, signed distances and baked
#            normals have the wrong sign. The viewer that wrote the file shows nothing of it.
# To do:     export GLB, which keeps the scale; or bake the mirror first: apply the matrix and swap two corners.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

npm install --silent --no-audit --no-fund --prefix "$folder" three@0.187.0
cat > "$folder/mirrored.mjs" <<'END'
import assert from "node:assert";
import { BoxGeometry, Mesh, Vector3 } from "three";
import { OBJExporter } from "three/addons/exporters/OBJExporter.js";
import { PLYExporter } from "three/addons/exporters/PLYExporter.js";
import { STLExporter } from "three/addons/exporters/STLExporter.js";
import { OBJLoader } from "three/addons/loaders/OBJLoader.js";
import { PLYLoader } from "three/addons/loaders/PLYLoader.js";
import { STLLoader } from "three/addons/loaders/STLLoader.js";

// Each format, written and read again.
const FORMATS = {
  STL: (part) => new STLLoader().parse(new STLExporter().parse(part, { binary: true }).buffer),
  OBJ: (part) => new OBJLoader().parse(new OBJExporter().parse(part)).children[0].geometry,
  PLY: (part) => new PLYLoader().parse(new PLYExporter().parse(part)),
};

// A sixth of the triple products: positive where the faces look outwards.
function volume(geometry) {
  const { position } = (geometry.index ? geometry.toNonIndexed() : geometry).attributes;
  const at = (corner) => new Vector3().fromBufferAttribute(position, corner);
  let sum = 0;
  for (let i = 0; i < position.count; i += 3) sum += at(i).dot(at(i + 1).cross(at(i + 2))) / 6;
  return sum;
}

// Of a part that has its middle at the origin.
function direction({ attributes: { position, normal } }) {
  const along = Array.from({ length: position.count }, (_, i) =>
    new Vector3().fromBufferAttribute(position, i).dot(new Vector3().fromBufferAttribute(normal, i)));
  return along.every((value) => value > 0) ? "outwards" : along.every((value) => value < 0) ? "inwards" : "both ways";
}

for (const scale of [1, -1]) {
  const part = new Mesh(new BoxGeometry(1, 2, 3));
  part.scale.x = scale;
  part.updateMatrixWorld();
  console.log(`a box of 1 x 2 x 3, scaled by ${scale} along x`);
  for (const [format, through] of Object.entries(FORMATS)) {
    const read = through(part);
    const found = volume(read);
    console.log(`  ${format}: volume ${found.toFixed(3)}, normals point ${direction(read)}`);
    assert.ok(Math.abs(found - 6 * scale) < 1e-4, "the behaviour has changed: mirrored parts keep their outside");
  }
}
END
node "$folder/mirrored.mjs"
