"""Prints what suits each family of models (`dreamflow_core.settings.presets`), as `docs/headless.md` has it.

python benchmarks/families.py
"""

from __future__ import annotations

from dreamflow_core.settings.presets import FAMILIES, PRESETS, Family, planned


def row(family: Family) -> list[str]:
    field, refined = planned("nerf", family, PRESETS[0], family.size).stage.scene, []
    cells = [f"{family.name}", f"{family.size}", f"{family.cfg:g}"]
    cells += [f"{field.grid.finest}, {field.grid.levels} levels, 2^{field.grid.entries_log2}", f"{field.samples}"]
    cells += [", ".join(f"{a:g} to {b:g}" for a, b in family.ranges.values())]
    for preset in PRESETS:
        work = family.work[preset]
        views = [
            levels * times * planned("nerf", family, preset, family.size).stage.views.views
            for levels, times in (work.nerf, work.tune, work.refine)
        ]
        refined.append(f"{', '.join(f'{v:,}' for v in views)}; {work.extract.faces:,}; {work.extract.texture_size}")
    return [*cells, *refined]


def table() -> str:
    """Markdown, a line each family."""
    head = ["family", "image", "cfg", "grid: finest, levels, entries", "samples", "timesteps of nerf, tune, refine"]
    head += [f"{preset}: views of nerf, tune, refine; faces; texture" for preset in PRESETS]
    lines = [head, ["---"] * len(head), *(row(family) for family in FAMILIES.values())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table())
