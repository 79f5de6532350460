"""A mesh written into the glTF document that it was read of: what a stage did not change is as it was."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from . import topology
from .bake import fill, surface_texels
from .from_gltf import baked
from .gltf import INSTANCING, GltfPart, GltfScene
from .gltf_document import DRACO, objects
from .gltf_draft import Draft
from .gltf_materials import CLAMP_TO_EDGE, REPEAT, SPECULAR_GLOSSINESS, TRANSFORM
from .losses import INSTANCE_FEATURES, VARIANTS, losses
from .mesh import Floats, Ints, Mesh
from .node_space import before_displacement, local_normals, local_tangents, reached, to_local
from .normal_map import any_tangents, tangents
from .to_gltf import new_texture, to_bytes

_BASE_TEXTURES = ("baseColorTexture", "diffuseTexture")


@dataclass(frozen=True, eq=False)
class GltfSource:
    """A glTF document and the mesh that was made of it.

    Attributes:
        scene: what the document shows.
        mesh: its parts, one after the other, as `from_gltf.one_mesh` joins them.
        draft: of the document.
        unseen: what it shows that the mesh has no place for, a few words each.
        kept_in: what `glb` will be, for the log.
    """

    scene: GltfScene
    mesh: Mesh
    draft: Draft
    unseen: tuple[str, ...] = ()
    kept_in: str = ""

    def notice(self, mesh: Mesh, optimised: Collection[str]) -> str | None:
        """See `Source`."""
        painted = "texture" in optimised or _differ(self.mesh.texture, mesh.texture)
        bent = "normal_map" in optimised or _differ(self.mesh.normal_map, mesh.normal_map)
        cut, moved = (painted or bent) and mesh.origin is not None, "vertices" in optimised
        stage = {"repainted": painted and (cut or self.mesh.texture is None), "bent": bent, "moved": moved}
        lost = [*losses(self.scene, self.unseen, **stage, parted=cut or moved)]
        kept = [name for name in self.unseen if name not in lost]
        said = [
            *([f"kept in {self.kept_in}: {', '.join(kept)}"] if kept else []),
            *([f"lost in {self.kept_in}: {', '.join(lost)}"] if lost else []),
        ]
        return f"{self.scene.document.path}: {'; '.join(said)}" if said else None

    def glb(self, mesh: Mesh) -> bytes:
        """The document as a GLB file with what became of the mesh.

        - Texture: where it lies on the file's own UVs for its one texture, the picture is replaced; else all materials
          show the mesh's texture in place of their own base colour. Faces, their order and other sets of UVs stay;
          new UVs split vertices.
        - Geometry: vertices move in their nodes' spaces, though not along axes that these scale to 0, and the normals
          of the faces there follow, hard edges too; tangents are left to the viewer. Morph targets stay, and with the
          default weights show all that as it is here.
        - A mesh that several nodes show becomes one for each where vertices moved or were split.

        Args:
            mesh: with the faces of `self.mesh` in their order.
        """
        return _Writer(self, mesh).glb()


class _Writer:
    """Writes one mesh; vertices are counted through all parts of the file."""

    def __init__(self, source: GltfSource, mesh: Mesh):
        self._before, self._after, self._scene = source.mesh, mesh, source.scene
        self._draft = source.draft.copy()
        self._tree = self._draft.tree
        self._parts = source.scene.parts
        self._primitives = [self._primitive(part, part.mesh) for part in self._parts]
        ends = np.cumsum([[0, 0], *([len(part.positions), len(part.faces)] for part in self._parts)], axis=0)
        self._vertices = [slice(*pair) for pair in zip(ends[:-1, 0], ends[1:, 0])]
        self._faces = [slice(*pair) for pair in zip(ends[:-1, 1], ends[1:, 1])]
        self._origin = np.arange(ends[-1, 0]) if mesh.origin is None else mesh.origin
        across, down = (REPEAT if repeats else CLAMP_TO_EDGE for repeats in mesh.repeats)
        self._wrap = across, down
        self._shown = [np.arange(rows.start, rows.stop) for rows in self._vertices]
        """Which vertices of the mesh those of each primitive are."""

    def glb(self) -> bytes:
        painted = _differ(self._before.texture, self._after.texture)
        bumped = _differ(self._before.normal_map, self._after.normal_map)
        cut = (painted or bumped) and self._after.origin is not None
        moved = self._displacements()
        if cut or moved.any():
            self._give_each_its_own()
        if moved.any():
            self._move(moved)
        if painted or bumped:
            place = self._cut(painted, bumped) if cut else self._place()
            if painted:
                self._paint(place, cut)
            if bumped:
                self._bend(place)
        return self._draft.glb()

    def _primitive(self, part: GltfPart, mesh: int) -> dict[str, Any]:
        return self._tree["meshes"][mesh]["primitives"][part.primitive]

    def _displacements(self) -> Floats:
        """How far each vertex of the file was moved, (V, 3), in the scene, as far as its node lets it."""
        start = np.concatenate([part.positions for part in self._parts]).astype(np.float32)
        moved = np.zeros(start.shape)
        moved[self._origin] = self._after.vertices.astype(np.float64) - start[self._origin]
        for part, rows in zip(self._parts, self._vertices):
            if moved[rows].any():
                moved[rows] = reached(part.matrices[:, :3, :3], moved[rows])
        return moved

    def _give_each_its_own(self) -> None:
        """Each part gets a primitive of its own, where several nodes or instances show a mesh."""
        nodes = self._tree["nodes"]
        uses = Counter(node["mesh"] for node in nodes if "mesh" in node)
        places = {(part.node, part.instance): part.mesh for part in self._parts}
        instances = Counter(node for node, instance in places if instance is not None)
        children: dict[int, list[int]] = {node: [] for node in instances}
        for (node, instance), mesh in places.items():
            uses[mesh] += instances[node] - 1 if instance == 0 else 0
            own = mesh
            if uses[mesh] > 1:
                own = self._draft.add("meshes", **copy.deepcopy(self._tree["meshes"][mesh]))
                uses[mesh] -= 1
            places[node, instance] = own
            if instance is None:
                nodes[node]["mesh"] = own
            else:
                children[node].append(self._part_instance(node, instance, own))
        for part in self._parts:
            if part.instance == 0:
                nodes[part.node].pop("mesh", None)
                nodes[part.node].pop("weights", None)
                for name in (INSTANCING, INSTANCE_FEATURES):
                    _without_extension(nodes[part.node], name)
        for animation in self._tree.get("animations", []):
            animation["channels"] = [own for given in animation["channels"] for own in _for_each(given, children)]
        self._primitives = [self._primitive(part, places[part.node, part.instance]) for part in self._parts]

    def _part_instance(self, node: int, instance: int, mesh: int) -> int:
        """Make one of a node's instances a node below it; with attributes of its own it stays an instance, the one."""
        extensions = self._draft.document.item("nodes", node)["extensions"]
        attributes = extensions[INSTANCING]["attributes"]
        given = self._tree["nodes"][node]
        more: dict[str, Any] = {"weights": given["weights"]} if "weights" in given else {}
        if attributes.keys() <= {"TRANSLATION", "ROTATION", "SCALE"}:
            more |= {name.lower(): self._draft.values(n)[instance].tolist() for name, n in attributes.items()}
        else:
            alone = {name: self._draft.taken(n, np.array([instance])) for name, n in attributes.items()}
            more["extensions"] = {INSTANCING: {**copy.deepcopy(extensions[INSTANCING]), "attributes": alone}}
            if INSTANCE_FEATURES in extensions:
                more["extensions"][INSTANCE_FEATURES] = copy.deepcopy(extensions[INSTANCE_FEATURES])
        made = self._draft.add("nodes", mesh=mesh, **more)
        given.setdefault("children", []).append(made)
        return made

    def _move(self, moved: Floats) -> None:
        """Move the file's vertices by displacements (V, 3) in the scene."""
        normals, turned = self._normals(moved)
        for part, primitive, rows in zip(self._parts, self._primitives, self._vertices):
            if not turned[rows].any():
                continue
            self._unpack(primitive)
            linear, local = part.matrices[:, :3, :3], part.local
            shift = to_local(linear, moved[rows])
            stays = (moved[rows] == 0).all(axis=1, keepdims=True)
            self._set(primitive, "POSITION", np.where(stays, local["POSITION"], local["POSITION"] + shift))
            if "NORMAL" in local:
                own = self._under_targets(part, primitive, local_normals(linear, normals[rows]), turned[rows])
                self._set(primitive, "NORMAL", np.where(turned[rows, None], own, local["NORMAL"]))
            self._leave_out(primitive, "TANGENT", len(local["POSITION"]))

    def _under_targets(self, part: GltfPart, primitive: dict[str, Any], normals: Floats, turned: np.ndarray) -> Floats:
        """The normals (V, 3) that become these under the morph targets' default weights, where turned (V,)."""
        weights = self._weights(part)
        displaced = [
            (target, self._draft.values(target["NORMAL"]).astype(np.float64), weight)
            for target, weight in zip(primitive.get("targets", []), weights)
            if "NORMAL" in target and weight
        ]
        if not displaced:
            return normals
        total = np.sum([weight * values for _, values, weight in displaced], axis=0)
        made, lacks = before_displacement(normals, part.local["NORMAL"].astype(np.float64), total)
        lacks[~turned] = 0
        if lacks.any():
            share = lacks / sum(weight**2 for _, _, weight in displaced)
            for target, values, weight in displaced:
                target["NORMAL"] = self._draft.accessor((values + weight * share).astype(np.float32))
        return made

    def _weights(self, part: GltfPart) -> list[float]:
        """Of the morph targets, by default."""
        document = self._scene.document
        mesh = document.item("meshes", part.mesh)
        return document.item("nodes", part.node).get("weights", mesh.get("weights", []))

    def _normals(self, moved: Floats) -> tuple[Floats, np.ndarray]:
        """Normals of the moved vertices, (V, 3), and whether a face at them changed, (V,)."""
        parts = self._parts
        places = np.concatenate([part.positions for part in parts]) + moved
        faces = np.concatenate([part.faces + rows.start for part, rows in zip(parts, self._vertices)])
        given = [np.zeros_like(part.positions) if part.normals is None else part.normals for part in parts]
        turned = np.zeros(len(places), bool)
        turned[faces[(moved[faces] != 0).any(axis=(1, 2))]] = True
        apart = np.concatenate(given)
        # Vertices that were split share their normal.
        place = topology.bent_alike(places, apart)
        return topology.vertex_normals(places, faces, apart=apart), np.isin(place, place[turned])

    def _free_set(self, replaced: set[str]) -> int:
        """The number of a set of UVs through which only textures of these names are seen: the first, or a new one."""
        variants = self._other_variants()
        taken = set()
        for number, material in enumerate(self._tree.get("materials", [])):
            own = number in self._scene.materials and number not in variants
            if own or number in variants:
                taken |= {
                    used.get("extensions", {}).get(TRANSFORM, {}).get("texCoord", used.get("texCoord", 0))
                    for path, used in objects(material)
                    if path and path[-1].endswith("Texture") and not (own and path[-1] in replaced)
                }
        sets = max(_count_sets(primitive) for primitive in self._primitives)
        return sets if 0 in taken else 0

    def _cut(self, painted: bool, bumped: bool) -> dict[str, Any]:
        """Split the file's vertices as the mesh's are, and give them its UVs; how its texture is seen, as `_place`."""
        assert self._after.uvs is not None
        replaced = {*(_BASE_TEXTURES if painted else ()), *(["normalTexture"] if bumped else ())}
        number, shown = self._free_set(replaced), []
        for part, primitive, rows, faces in zip(self._parts, self._primitives, self._vertices, self._faces):
            kept, corners = np.unique(self._after.faces[faces], return_inverse=True)
            order = np.argsort(self._origin[kept], kind="stable")
            kept = kept[order]
            take = self._origin[kept] - rows.start
            self._unpack(primitive)
            for names in _attributes(primitive):
                for name in names:
                    names[name] = self._draft.taken(names[name], take, bounds=name == "POSITION")
            self._leave_out(primitive, f"TEXCOORD_{number}", len(kept))
            uvs = self._draft.accessor(self._after.uvs[kept])
            # Sets have to be numbered without gaps.
            for between in range(min(_count_sets(primitive), number), number + 1):
                primitive["attributes"][f"TEXCOORD_{between}"] = uvs
            made = np.argsort(order)[corners].reshape(-1, 3)
            primitive["indices"] = self._draft.indices(_as_in_file(part, made))
            primitive.pop("mode", None)
            shown.append(kept)
        self._shown = shown
        return {"texCoord": number} if number else {}

    def _place(self) -> dict[str, Any]:
        """How the mesh's texture is seen through the UVs that the file has: what glTF says of a texture's use."""
        if self._before.texture is None:
            return {}
        number = next(iter(self._scene.materials))
        base, _, texture = next(_bases(self._tree["materials"][number]))
        return {name: value for name, value in base[texture].items() if name != "index"}

    def _paint(self, place: dict[str, Any], cut: bool) -> None:
        """Show the mesh's texture in place of the base colours."""
        assert self._after.texture is not None
        pixels = to_bytes(self._after.texture)
        if not cut and self._before.texture is not None:
            texture = self._repainted(pixels)
        else:
            alpha = self._baked_alpha() if cut else None
            texture = new_texture(self._draft, self._draft.image(_with_alpha(pixels, alpha)), self._wrap)
            for primitive in self._primitives:
                self._leave_out_colours(primitive, alpha_too=cut)
        for material in self._materials():
            for base, colour, name in _bases(material):
                factor = [1.0, 1.0, 1.0, 1.0 if cut else base.get(colour, [1.0])[-1]]
                base[colour], base[name] = factor, {"index": texture, **place}
                if factor == [1.0] * 4:
                    del base[colour]

    def _repainted(self, pixels: np.ndarray) -> int:
        """The texture of all the file's materials with another picture; it keeps the transparency."""
        material = next(iter(self._scene.materials.values()))
        assert material.base_texture is not None
        given = Image.fromarray(to_bytes(material.base_texture.picture.pixels)[..., 3])
        alpha = np.asarray(given.resize(pixels.shape[1::-1], Image.Resampling.BILINEAR))
        texture = copy.deepcopy(self._tree["textures"][material.base_texture.number])
        name = self._tree["images"][texture["source"]].get("name", "") if "source" in texture else ""
        # What stands in for the picture shows the old one.
        texture.pop("extensions", None)
        return self._draft.add("textures", **{**texture, "source": self._draft.image(_with_alpha(pixels, alpha), name)})

    def _baked_alpha(self) -> np.ndarray | None:
        """Alpha of all base colours in the mesh's texture, (H, W); None if all is opaque."""
        if all(material.alpha_mode == "OPAQUE" for material in self._scene.materials.values()):
            return None
        assert self._after.texture is not None
        texels = surface_texels(self._after, len(self._after.texture))
        alpha = baked(self._scene, texels)[:, 3:]
        return to_bytes(fill(texels, alpha.repeat(3, axis=1))[..., 0])

    def _bend(self, place: dict[str, Any]) -> None:
        """Show the mesh's normal map, with the tangents that it was made for."""
        after = self._after
        assert after.normal_map is not None
        image = self._draft.image(to_bytes(after.normal_map))
        used = {"index": new_texture(self._draft, image, self._wrap), **place}
        for material in self._materials():
            material["normalTexture"] = {**used}
        normals = topology.vertex_normals(after.vertices, after.faces) if after.normals is None else after.normals
        bent = tangents(replace(after, normals=normals))
        for part, primitive, rows, shown in zip(self._parts, self._primitives, self._vertices, self._shown):
            self._unpack(primitive)
            linear = part.matrices[:, :3, :3]
            if len(linear) > 1:
                linear = linear[self._origin[shown] - rows.start]
            along = local_tangents(linear, bent[shown, :3])
            side = bent[shown, 3:] * np.where(np.linalg.det(linear) < 0, -1, 1)[:, None]
            if "NORMAL" not in primitive["attributes"]:
                self._set(primitive, "NORMAL", local_normals(linear, normals[shown]))
            # Sides that their node flattens have no direction in the scene.
            bare = (along == 0).all(axis=1)
            along[bare] = any_tangents(self._draft.values(primitive["attributes"]["NORMAL"])[bare])
            # What targets displace of them was drawn for others.
            self._leave_out(primitive, "TANGENT", len(shown))
            self._set(primitive, "TANGENT", np.concatenate([along, side], axis=1))

    def _materials(self) -> list[dict[str, Any]]:
        """Those of the parts, so that nothing else in the file, nor another variant of a part, has them too."""
        own = {id(primitive) for primitive in self._primitives}
        every = [primitive for mesh in self._tree["meshes"] for primitive in mesh["primitives"]]
        others = self._other_variants()
        for primitive in every:
            if id(primitive) not in own:
                others |= {primitive.get("material"), *(mapping["material"] for mapping in _mappings(primitive))}
        made: dict[int | None, int] = {}
        for primitive in self._primitives:
            number = primitive.get("material")
            if number not in made:
                given = {} if number is None else self._tree["materials"][number]
                if number is None or number in others:
                    made[number] = self._draft.add("materials", **copy.deepcopy(given))
                else:
                    made[number] = number
            primitive["material"] = made[number]
            for mapping in _mappings(primitive):
                if mapping["material"] == number:
                    mapping["material"] = made[number]
        return [self._tree["materials"][number] for number in dict.fromkeys(made.values())]

    def _other_variants(self) -> set[int | None]:
        """The numbers of the materials that the parts have in other variants than the one shown."""
        return {
            mapping["material"]
            for primitive in self._primitives
            for mapping in _mappings(primitive)
            if mapping["material"] != primitive.get("material")
        }

    def _leave_out_colours(self, primitive: dict[str, Any], alpha_too: bool) -> None:
        """Vertex colours are in the texture now."""
        attributes = primitive["attributes"]
        if "COLOR_0" not in attributes:
            return
        self._unpack(primitive)
        colours = self._draft.values(attributes["COLOR_0"])
        self._leave_out(primitive, "COLOR_0", len(colours))
        opaque = alpha_too or colours.shape[1] == 3 or (colours[:, 3] == 1).all()
        if not opaque or "COLOR_1" in attributes:
            white = np.ones((len(colours), 4))
            white[:, 3] = 1 if opaque else colours[:, 3]
            self._set(primitive, "COLOR_0", white)

    def _leave_out(self, primitive: dict[str, Any], name: str, count: int) -> None:
        """Leave out an attribute and what morph targets displace of it; targets must not be empty."""
        primitive["attributes"].pop(name, None)
        for target in primitive.get("targets", []):
            if name in target and len(target) == 1:
                target["POSITION"] = self._draft.accessor(np.zeros((count, 3), np.float32), bounds=True)
            target.pop(name, None)

    def _set(self, primitive: dict[str, Any], name: str, values: Floats) -> None:
        values = values.astype(np.float32)
        primitive["attributes"][name] = self._draft.accessor(values, bounds=name == "POSITION")

    def _unpack(self, primitive: dict[str, Any]) -> None:
        """A primitive that was compressed as plain glTF has it."""
        packed, faces = self._draft.document.draco(primitive)
        for name, array in packed.items():
            given = self._tree["accessors"][primitive["attributes"][name]]
            more = {key: given[key] for key in ("normalized", "name") if key in given}
            primitive["attributes"][name] = self._draft.accessor(array, bounds=name == "POSITION", **more)
        if faces is not None:
            primitive["indices"] = self._draft.indices(faces)
            primitive.pop("mode", None)
        _without_extension(primitive, DRACO)


def _bases(material: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """The parts of a material that hold a base colour, and under which names its factor and its texture."""
    glossy = material.get("extensions", {}).get(SPECULAR_GLOSSINESS)
    if glossy is not None:
        yield glossy, "diffuseFactor", "diffuseTexture"
    yield material.setdefault("pbrMetallicRoughness", {}), "baseColorFactor", "baseColorTexture"


def _mappings(primitive: dict[str, Any]) -> list[dict[str, Any]]:
    """The materials of a primitive's variants, and of which."""
    return primitive.get("extensions", {}).get(VARIANTS, {}).get("mappings", [])


def _for_each(channel: dict[str, Any], children: dict[int, list[int]]) -> list[dict[str, Any]]:
    """An animation's channel, or one for each of the nodes that its node's mesh went to, if it morphs that."""
    target = channel["target"]
    if target["path"] != "weights" or target.get("node") not in children:
        return [channel]
    return [copy.deepcopy({**channel, "target": {**target, "node": child}}) for child in children[target["node"]]]


def _attributes(primitive: dict[str, Any]) -> list[dict[str, int]]:
    """A primitive's attributes, and those of its morph targets."""
    return [primitive["attributes"], *primitive.get("targets", [])]


def _count_sets(primitive: dict[str, Any]) -> int:
    return sum(name.startswith("TEXCOORD_") for name in primitive["attributes"])


def _as_in_file(part: GltfPart, faces: Ints) -> Ints:
    """A part's faces with their corners in the order that the file has them; mirrored ones were turned."""
    mirrored = np.broadcast_to(np.linalg.det(part.matrices[:, :3, :3]) < 0, len(part.positions))[part.faces[:, 0]]
    return np.where(mirrored[:, None], faces[:, [0, 2, 1]], faces)


def _with_alpha(pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Pixels (H, W, 3) with alpha (H, W) where it says something."""
    return pixels if alpha is None or (alpha == 255).all() else np.dstack([pixels, alpha])


def _without_extension(part: dict[str, Any], name: str) -> None:
    part.get("extensions", {}).pop(name, None)
    if not part.get("extensions", True):
        del part["extensions"]


def _differ(one: Floats | None, other: Floats | None) -> bool:
    return other is not None and (one is None or not np.array_equal(one, other))
