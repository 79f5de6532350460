"""Arrows between the pack's modules point one way, read off every import statement, late ones included."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("dreamflow_core", "nodes")
    for path in (ROOT / folder).rglob("*.py")
}
ROOMS = (
    # What is small and knows nothing of the others.
    {"state", "job", "cameras", "views", "schedule", "guidance", "parameterisation", "lora"},
    {"settings", "pictures", "preparing", "quiet", "training"},
    {"prior", "hints", "render", "mesh"},
    {"scenes", "priors", "demo", "mini", "sampler"},
    {"apfo"},
    {"pipeline"},
    {"generate"},
    {"cli"},
)
"""The rooms of `dreamflow_core` from the bottom up: a module imports from its own floor or from below."""
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
ALLOWED = (
    sys.stdlib_module_names
    | {"dreamflow_core", "torch", "numpy", "scipy", "PIL", "safetensors", "tqdm"}
    | {
        *("DracoPy", "diffusers", "fast_simplification", "kornia", "lycoris", "mapbox_earcut", "meshopt", "nerfacc"),
        *("nvdiffrast", "skimage", "tokenizers", "transformers", "trimesh", "warp", "xatlas"),
    }
)
"""What the core may import by absolute names: none of it is ComfyUI's."""


def imports(source: str, module: str, package: bool, known: set[str]) -> set[str]:
    """What a module imports: of the modules in `known` their whole names, of others their top-level ones."""
    found = set()
    home = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*home[: len(home) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in known else ".".join(base) if ".".join(base) in known else base[0])
    return found


GRAPH = {
    module: imports(path.read_text(), module, path.name == "__init__.py", set(FILES)) for module, path in FILES.items()
}


def wrong_arrows(graph: dict[str, set[str]]) -> list[str]:
    """Imports of the core that point up, or out of it."""

    def floor(module: str) -> int:
        _, _, rest = module.partition(".")
        return FLOOR[rest.split(".")[0]] if rest else 0

    core = {module: used for module, used in graph.items() if module.split(".")[0] == "dreamflow_core"}
    return [
        f"{module} -> {other}"
        for module, used in core.items()
        for other in used
        if other.split(".")[0] not in ALLOWED
        or (other.split(".")[0] == "dreamflow_core" and floor(other) > floor(module))
    ]


def check_no_circle(graph: dict[str, set[str]]) -> None:
    """Raises CycleError, which names the modules of a circle."""
    TopologicalSorter({module: used & graph.keys() for module, used in graph.items()}).prepare()


def test_nothing_imports_in_a_circle():
    check_no_circle(GRAPH)


def test_no_import_of_the_core_points_up_or_out():
    assert wrong_arrows(GRAPH) == []


def test_the_adapter_knows_no_node():
    above = {module for module in FILES if module.startswith("nodes.") and not module.startswith("nodes.adapter")}
    assert {m: used & above for m, used in GRAPH.items() if m.startswith("nodes.adapter") and used & above} == {}


def test_every_import_inside_the_pack_is_relative():
    absolute = ("dreamflow_core", "nodes")
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not [name for name in names if name.split(".")[0] in absolute], module


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dreamflow_core.render.volume", "def late():\n    from ..scenes import nerf"),
        ("dreamflow_core.mesh.mesh", "from ..pipeline import extract_mesh"),
        ("dreamflow_core.prior", "import comfy.samplers"),
        ("dreamflow_core.prior", "import node_helpers"),
        ("dreamflow_core.apfo", "from ..nodes import stages"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str):
    assert wrong_arrows({module: imports(source, module, False, set(FILES))})


def test_a_circle_is_seen():
    graph = {**GRAPH, "dreamflow_core.render.lattice": {"dreamflow_core.render.hashgrid"}}
    with pytest.raises(ValueError, match="cycle"):
        check_no_circle(graph)
