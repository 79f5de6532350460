"""Not every device has float64: torch's is used on the CPU alone, in the functions that are listed here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ON_THE_CPU = {
    "dreamflow_core/schedule.py": {"timestep_range", "log_uniform", "karras"},
    "dreamflow_core/parameterisation.py": {"_discrete", "time_of", "sigma_at"},
    "dreamflow_core/mesh/precondition.py": {"parameters", "solve"},
    # Names of PLY's types.
    "dreamflow_core/mesh/ply_document.py": {""},
    # A check of what it was given.
    "dreamflow_core/render/raster.py": {"visible"},
}
WORDS = {"float64", "double", "complex128", "cdouble"}


def doubles(path):
    """(function, line) of every place that names torch's double precision; NumPy's is always on the CPU."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in ast.walk(node):
                inside[child] = node.name  # the innermost comes last
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in WORDS:
            if not (isinstance(node.value, ast.Name) and node.value.id == "np"):
                yield inside.get(node, ""), node.lineno
        elif isinstance(node, ast.Constant) and node.value in WORDS:
            yield inside.get(node, ""), node.lineno


@pytest.mark.parametrize("path", sorted((ROOT / "dreamflow_core").rglob("*.py")), ids=lambda path: path.name)
def test_float64_is_used_where_it_is_listed(path):
    name = path.relative_to(ROOT).as_posix()
    assert [place for place in doubles(path) if place[0] not in ON_THE_CPU.get(name, ())] == []


def test_the_list_has_nothing_that_is_gone():
    for name, functions in ON_THE_CPU.items():
        assert {function for function, _ in doubles(ROOT / name)} <= functions, name
        assert list(doubles(ROOT / name)), name
