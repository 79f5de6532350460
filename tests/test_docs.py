"""The docs name nothing that is not there, and the check of that finds what is not (tests/check_docs.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_docs import ROOT, docs, faults

RIGHT = """
# Right: all of it

[a file](other.md), [a heading](other.md#two-words-1), [this one](#right-all-of-it), ![a picture](picture.png),
[elsewhere](https://example.org/missing.md#nothing), `make`, `dreamflow nerf`, `--nerf-levels 100 --tune-optimise both`,
`dreamflow_core.pipeline`, `benchmarks/methods_2d.py --sweep`, `nodes/`, `don't`, `a/b.md`

| in a table |
| --- |
| `python benchmarks/ring.py` |

    make demo PROMPT="a red sphere"       # a comment
    COMFYUI_PATH=~/ComfyUI make test && pytest tests/test_docs.py::test_name workflows/api/*.json
    .venv/bin/dreamflow image "a duck" \\
        --model model.safetensors --start 0.5 --out duck
    git clone <this repository> ComfyUI/custom_nodes/dreamflow
    pip install -r ComfyUI/custom_nodes/dreamflow/requirements.txt
    python -m dreamflow_core.demo.train base --steps 10
    python -m dreamflow_core.cli nerf "a duck" --out duck

```python
import torch
from dreamflow_core import pipeline
from dreamflow_core.cameras import Cameras
```

```text
make nothing of this
```
"""

WRONG = {
    "a file": ("[text](missing.md)", "missing.md: there is no such file"),
    "a picture": ("![text](missing.png)", "missing.png: there is no such file"),
    "a picture in HTML": ('<p><img src="missing.png"></p>', "missing.png: there is no such file"),
    "a heading of another file": ("[text](other.md#three-words)", "there is no such heading"),
    "a heading's second twin": ("[text](other.md#two-words-2)", "there is no such heading"),
    "a heading of this file": ("[text](#nowhere)", "#nowhere: there is no such heading"),
    "a target": ("    make coffee", "the Makefile has no coffee"),
    "a target in a fence": ("```\nmake coffee\n```", "the Makefile has no coffee"),
    "a target in the text": ("`make coffee`", "the Makefile has no coffee"),
    "a target in a table": ("| a |\n| --- |\n| `make coffee` |", "the Makefile has no coffee"),
    "a target after another": ("    make lint && make coffee", "the Makefile has no coffee"),
    "a variable": ("    make demo COLOUR=red", "the Makefile has no COLOUR"),
    "a command": ("    dreamflow paint PROMPT --out folder", "invalid choice: 'paint'"),
    "a command in the text": ("`dreamflow paint`", "invalid choice: 'paint'"),
    "an option": ("    dreamflow nerf PROMPT --out folder --colour red", "unrecognized arguments: --colour red"),
    "an option of another command": ("    dreamflow nerf PROMPT --out folder --faces 9", "--faces 9"),
    "an option on the next line": ("    dreamflow nerf PROMPT \\\n    --out folder --colour red", "--colour red"),
    "an option in the text": ("`dreamflow nerf --colour`", "unrecognized arguments: --colour"),
    "an option alone": ("`--colour red`", "--colour red: no command and no script has that"),
    "options that nothing has both of": ("`--tune-levels 9 --sweep`", "no command and no script has that"),
    "a choice": ("    dreamflow nerf PROMPT --out folder --preset best", "invalid choice: 'best'"),
    "a value": ("`dreamflow nerf --levels many`", "invalid int value: 'many'"),
    "an argument": ("    dreamflow nerf PROMPT", "--out"),
    "the module's option": ("    python -m dreamflow_core.cli nerf PROMPT --out folder --colour red", "--colour red"),
    "a script": ("    python benchmarks/missing.py", "benchmarks/missing.py: there is no such file"),
    "a script elsewhere": ("`queue.py --prompt`", "queue.py: there is no such script"),
    "a script's option": ("    .venv/bin/python benchmarks/ring.py --colour=red", "ring.py has no option --colour"),
    "a script's option in the text": ("`benchmarks/ring.py --colour`", "ring.py has no option --colour"),
    "a module": ("    python -m dreamflow_core.demo.paint", "dreamflow_core.demo.paint: there is no such module"),
    "a module's option": (
        "    python -m dreamflow_core.demo.train base --colour red",
        "no option --colour",
    ),
    "a program": ("    dreamfow nerf PROMPT", "dreamfow: there is no such program"),
    "a quote": ('    make demo PROMPT="a red sphere', "No closing quotation"),
    "an argument that is a file": ("    pytest tests/test_missing.py::test_name", "tests/test_missing.py"),
    "a file of the pack": ("    pip install -r ComfyUI/custom_nodes/dreamflow/needed.txt", "needed.txt"),
    "a path in the text": ("`nodes/missing/`", "nodes/missing/: there is no such file"),
    "a module in the text": ("`dreamflow_core.missing`", "dreamflow_core has no missing"),
    "an import": ("```python\nimport dreamflow_core.missing\n```", "No module named 'dreamflow_core.missing'"),
    "a name": ("```python\nfrom dreamflow_core.cameras import Lens\n```", "dreamflow_core.cameras has no Lens"),
    "an import in a function": ("```python\ndef f():\n    import nothing_at_all\n```", "nothing_at_all"),
    "syntax": ("```python\nfrom dreamflow_core import\n```", "from dreamflow_core import"),
}


@pytest.mark.parametrize("file", docs(), ids=lambda file: str(file.relative_to(ROOT)))
def test_what_the_docs_name_is_there(file):
    assert not list(faults(file))


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.fixture
def page(tmp_path) -> Path:
    """A page beside a picture and another page with two headings of one name."""
    (tmp_path / "picture.png").touch()
    (tmp_path / "other.md").write_text("# Two `words`\n\n# Two words\n")
    return tmp_path / "page.md"


def test_what_is_there_is_let_pass(page):
    page.write_text(RIGHT)
    assert not list(faults(page))


@pytest.mark.parametrize("text, complaint", WRONG.values(), ids=WRONG)
def test_what_is_not_there_is_found(page, text, complaint):
    page.write_text(text)
    (fault,) = faults(page)
    assert complaint in fault
